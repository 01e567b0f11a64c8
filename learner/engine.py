"""A rank's DeepSpeed engine with policy and reference model: training steps, weight updates, checkpoints.

`learner.rank` is the Ray actor around it.
"""

import copy
import math
import os
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.errors import InputError
from learner import setup
from learner.checkpoint import as_os_error
from learner.checkpoint_state import (
    check_saved_state,
    collect_state,
    load_model,
    model_fingerprint,
    read_state_tree,
    restore_state,
    save_model,
    write_state_tree,
)
from learner.collate import MicroBatch, collate
from learner.config import LearnerConfig, Objective
from learner.lora import Adapters
from learner.losses import micro_batch_loss
from learner.micro_batches import Item, TrainingSample, split
from learner.packed_attention import use_packing
from learner.parameter_filter import freeze
from learner.policy import PolicyModel
from learner.setup import compile_deepspeed_op, enable_gradient_checkpointing
from learner.step_metrics import StepMetrics, StepReport
from speech.families import Family
from speech.grammar import token_kinds
from speech.modeling import load_pretrained
from speech.vocabulary import Vocabulary
from weight_sync.broadcast import BroadcastSender
from weight_sync.senders import FileSender, new_sender
from weight_sync.source import WeightSource
from weight_sync.update import BroadcastCall, WeightUpdate


class LearnerEngine:
    """One process of a learner group. All ranks must call each method, except `bind_port` and `close`, at once."""

    def __init__(self, rank: int, world: int, settings: LearnerConfig, family: Family, objective: Objective) -> None:
        self._rank, self._world = rank, world
        self._settings, self._family, self._objective = settings, family, objective
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._kinds = torch.from_numpy(token_kinds(self._vocabulary))
        # The learner samples nothing: `from_pretrained` disables dropout. So a checkpoint needs no random state.
        # The seed is a safeguard: any randomness would be the same on every rank.
        torch.manual_seed(0)
        self._sender: FileSender | None = None
        self._broadcast_sender: BroadcastSender | None = None
        self._listener: socket.socket | None = None

    def bind_port(self, host: str) -> int:
        """Bind a port at this node's address for the group's rendezvous, and return it."""
        self._listener = setup.bind_port(host)
        return self._listener.getsockname()[1]

    def connect(self, host: str, port: int) -> int:
        """Join the group, load the model and build the DeepSpeed engine. Return the number of parameters."""
        cuda = self._settings.gpu
        os.environ.update(
            RANK=str(self._rank), LOCAL_RANK="0", WORLD_SIZE=str(self._world), MASTER_ADDR=host, MASTER_PORT=str(port)
        )
        if not cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(self._settings.threads)
            compile_deepspeed_op()
        import deepspeed

        backend = "nccl" if cuda else "gloo"
        if not torch.distributed.is_initialized():  # a process joins its group once
            store = setup.create_store(self._rank, self._world, host, port, self._listener)
            torch.distributed.init_process_group(backend, store=store, rank=self._rank, world_size=self._world)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)  # uses the existing group
        dtype = getattr(torch, self._settings.dtype)
        model = load_pretrained(
            self._settings.checkpoint,
            self._family,
            dtype=dtype,
            trust_remote_code=self._settings.trust_remote_code,
        )
        freeze(model, self._settings.frozen)
        self._adapters = Adapters(model, self._settings.lora) if self._settings.lora is not None else None
        if self._settings.packing:
            use_packing(model)
        if self._settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        policy = PolicyModel(model, self._kinds)
        self._device = torch.device("cuda" if cuda else "cpu")
        self._reference = None
        if self._objective.needs_reference and self._adapters is None:
            self._reference = copy.deepcopy(policy).to(self._device).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in policy.parameters() if parameter.requires_grad],
            lr=self._settings.learning_rate,
            betas=self._settings.betas,
            eps=self._settings.epsilon,
            weight_decay=self._settings.weight_decay,
        )
        s = self._settings
        rate = partial(setup.learning_rate_factor, warmup=s.warmup, steps=s.steps, final=s.final_rate)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, lr_scheduler=rates, config=self._deepspeed_config()
        )
        return sum(getattr(p, "ds_numel", p.numel()) for p in policy.parameters())

    def _deepspeed_config(self) -> dict:
        return {
            "train_micro_batch_size_per_gpu": 1,  # unused: row weights normalize the loss
            "gradient_accumulation_steps": 1,  # `step` sets boundaries: the number of micro-batches varies
            "zero_optimization": {"stage": self._settings.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": self._settings.gradient_clip,
            "bf16": {"enabled": self._settings.dtype == "bfloat16"},
            "steps_per_print": 10**9,
        }

    def step(self, items: list[Item], micro_batches: int, mix: float) -> StepReport:
        """Take one optimizer step on this rank's items. All ranks run the same number of micro-batches.

        If any rank's loss, or the gradient, is not finite, no rank takes the step. Weights, moments and schedule stay
        unchanged, and the gradient is cleared.
        """
        metrics, finite, all_finite = StepMetrics(), True, True
        rate = self._engine.get_lr()[0]
        for index, part in enumerate(split(items, micro_batches)):
            batch = collate(
                part,
                pad=None if self._settings.packing else self._vocabulary.pad,
                routes=len(self._objective.routes),
                temperature=self._settings.temperature,
                device=self._device,
                scored=self._scored,
                slot=self._vocabulary.slot,
                streams=self._family.streams,
            )
            # First: under ZeRO-3 nothing may run between a forward and its backward pass.
            reference = self._reference_logprobs(batch)
            logp, entropy = self._engine(**batch.policy_inputs(), num_chunks=self._num_chunks(len(batch.targets)))
            loss, part_metrics = micro_batch_loss(batch, logp, entropy, reference, self._objective, mix)
            metrics.merge(part_metrics)
            finite = finite and math.isfinite(loss.item())
            last = index == micro_batches - 1
            if last and not (all_finite := self._all_ranks(finite)):
                # An infinite loss can have a finite gradient (log-probability −∞). Make the gradient NaN on every
                # rank, so that DeepSpeed skips the step and clears all its buffers.
                loss = loss * math.nan
            self._engine.set_gradient_accumulation_boundary(last)
            # DeepSpeed averages gradients over ranks, but row weights already sum to the whole batch.
            self._engine.backward(loss * self._world)
        norm, taken = self._optimizer_step()
        if taken and not all_finite:
            raise RuntimeError("DeepSpeed took a step with a gradient that is not finite")
        return StepReport(metrics=metrics, gradient_norm=norm, learning_rate=rate, skipped=not taken, finite=finite)

    def _num_chunks(self, tokens: int) -> int:
        """Return the output layer's chunks. Under ZeRO-3 all ranks need the same number: their maximum."""
        chunks = self._engine.module.num_chunks(tokens)
        if self._settings.zero_stage < 3:
            return chunks
        maximum = torch.tensor([chunks], device=self._device)
        torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
        return int(maximum.item())

    def _all_ranks(self, condition: bool) -> bool:
        """Return True if the condition holds on all ranks."""
        violated = torch.tensor([0.0 if condition else 1.0], device=self._device)
        torch.distributed.all_reduce(violated, torch.distributed.ReduceOp.MAX)
        return not violated.item()

    def _optimizer_step(self) -> tuple[float, bool]:
        """Take the step, or clear a non-finite gradient. Return the gradient norm and whether the step was taken.

        All ranks have the same norm: gradients (ZeRO 0) or the norms of their parts are already reduced.
        """
        if self._settings.zero_stage == 0:
            # Without ZeRO, DeepSpeed neither reports the norm nor checks that it is finite. Not clipped yet.
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                self._engine.zero_grad()
                return norm, False
            self._engine.step()
            return norm, True
        self._engine.step()
        return float(self._engine.get_global_grad_norm()), self._engine.was_step_applied()

    def _scored(self, item: Item, row: TrainingSample) -> np.ndarray:
        return self._objective.scored(row.channels, item, row)

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        """Return log-probabilities [N] under the reference model; 0 for the anchor's tokens, which need none."""
        if not self._objective.needs_reference:
            return None
        *_, scored = batch.reference_sizes
        found = torch.zeros(len(batch.targets), device=self._device)
        if self._reference is not None:
            if scored:
                found[:scored], _ = self._reference(**batch.reference_inputs())
        elif self._adapters is not None and (scored or self._settings.zero_stage == 3):  # ZeRO-3 is collective
            inputs = batch.reference_inputs()
            if not scored:  # the other ranks need this rank's layers: run them on rows without scored tokens
                whole = batch.policy_inputs()
                inputs |= {name: whole[name] for name in ("input_ids", "packing", "audio_features")}
            with self._adapters.disabled():
                logp, _ = self._engine.module(**inputs, num_chunks=self._num_chunks(len(inputs["targets"])))
            found[:scored] = logp
        return found

    def publish(self, version: int, probe: list[np.ndarray]) -> tuple[WeightUpdate, list[np.ndarray]] | None:
        """Send the weights, or prepare a broadcast, which `broadcast` then sends.

        Returns, on rank 0, the update and the log-probabilities of each probe sequence, [L − 1] each: of all tokens but
        those of the first step.
        """
        logps = self._probe(probe)
        source, scale = self._source()
        if self._settings.exchange == "broadcast":
            return (replace(self._prepare_broadcast(source, version), scale=scale), logps) if self._rank == 0 else None
        weights = iter(source)
        try:
            if self._rank != 0:
                return None
            if self._sender is None:
                self._sender = new_sender(self._settings.exchange, self._settings.run, self._settings.folder)
            update = self._sender.send(source.groups, weights, version, whole=source.whole)
            return replace(update, scale=scale), logps
        finally:
            for _ in weights:  # also after an error: the other ranks gather every group together with this one
                pass

    def _source(self) -> tuple[WeightSource, float | None]:
        """Return what workers receive: weights, or adapters and their scale."""
        model, sharded = self._engine.module.model, self._settings.zero_stage == 3
        if self._adapters is None:
            return WeightSource(model, sharded=sharded), None
        return WeightSource(model, sharded=sharded, named=self._adapters.parameters()), self._adapters.config.scale

    def _prepare_broadcast(self, source: WeightSource, version: int) -> WeightUpdate:
        import ray

        if self._broadcast_sender is None:
            host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
            self._broadcast_sender = BroadcastSender(host, self._device)
        return self._broadcast_sender.prepare(source.groups, version, whole=source.whole)

    def broadcast(self, call: BroadcastCall) -> str | None:
        """Broadcast the weights that `publish` prepared. Return the reason if the broadcast failed."""
        source, _ = self._source()
        weights = iter(source)
        try:
            if self._broadcast_sender is not None:
                return self._broadcast_sender.send(source.groups, weights, call)
            return None
        finally:
            for _ in weights:  # as in `publish`
                pass

    @torch.no_grad()
    def _probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        logps = []
        for ids in sequences:
            inputs = torch.from_numpy(ids.astype(np.int64)).to(self._device)
            streams = self._family.streams
            sources = torch.arange(len(ids) - streams, device=self._device)
            all_allowed, temperatures = torch.zeros_like(sources), torch.ones(len(sources), device=self._device)
            # Under ZeRO-3 each layer gathers itself, as in a step.
            scored, _ = self._engine.module(inputs[None], sources, inputs[streams:], all_allowed, temperatures)
            logps.append(scored.float().cpu().numpy())
        self._engine.empty_partition_cache()  # otherwise layers that were prefetched would stay gathered
        return logps

    def _gathered(self):
        """Context in which all parameters are gathered on every rank."""
        import deepspeed

        sharded = self._settings.zero_stage == 3
        return deepspeed.zero.GatheredParameters(list(self._engine.module.parameters()), enabled=sharded)

    def save(self, directory: Path) -> str:
        """Write this rank's part of a checkpoint (`learner.checkpoint`). Return the fingerprint of the parameters.

        Ranks save independently: a full disk on one does not block the others. Raises OSError.
        """
        try:
            with self._gathered():
                if self._rank == 0:
                    start = Path(self._settings.checkpoint)
                    save_model(self._engine.module.model, start, directory, self._adapters)
            self._state_file(directory).parent.mkdir(exist_ok=True)
            write_state_tree(self._state_file(directory), collect_state(self._engine))
        except SafetensorError as error:
            raise as_os_error(error) from error
        return model_fingerprint(self._engine.module.model)

    def load(self, directory: Path, fingerprint: str) -> None:
        """Restore weights, optimizer and schedule, bit for bit. Needs the same number of ranks and the same ZeRO stage.

        Args:
            fingerprint: Fingerprint of the saved parameters.

        Raises InputError if the model has other parameters or a file is damaged.
        """
        check_saved_state(self._engine.module.model, directory, fingerprint, self._adapters)
        state = read_state_tree(self._state_file(directory))
        if self._settings.zero_stage < 3:  # at stage 3 the optimizer state includes them
            load_model(self._engine.module.model, directory, self._adapters)
        try:
            restore_state(self._engine, self._settings.zero_stage, self._world, state)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._state_file(directory)} holds no state of this optimizer: {error!r}") from error

    def _state_file(self, directory: Path) -> Path:
        return directory / "optimizer" / f"rank-{self._rank}.safetensors"

    def close(self) -> None:
        for sender in (self._sender, self._broadcast_sender):
            if sender is not None:
                sender.close()
