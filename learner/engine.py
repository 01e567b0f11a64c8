"""A rank's DeepSpeed engine, its model and start model: steps, weights on their way out, checkpoints.

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
    """One process of a learner group. `connect` must be called on all ranks at once."""

    def __init__(self, rank: int, world: int, settings: LearnerConfig, family: Family, objective: Objective) -> None:
        self._rank, self._world = rank, world
        self._settings, self._family, self._objective = settings, family, objective
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._kinds = torch.from_numpy(token_kinds(self._vocabulary))
        # Nothing in the learner draws: `from_pretrained` leaves the model without dropout, and nothing switches it on.
        # So a checkpoint needs no random state; the seed keeps what would slip in the same on every rank.
        torch.manual_seed(0)
        self._sender: FileSender | None = None
        self._broadcaster: BroadcastSender | None = None
        self._door: socket.socket | None = None

    def open_door(self, host: str) -> int:
        """The port, held from now on, at which the group will meet at this node's address."""
        self._door = setup.door(host)
        return self._door.getsockname()[1]

    def connect(self, host: str, port: int) -> int:
        """Joins the group, loads the model and builds the DeepSpeed engine. Returns the number of parameters."""
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
        if not torch.distributed.is_initialized():  # a process meets its group once
            store = setup.store(self._rank, self._world, host, port, self._door)
            torch.distributed.init_process_group(backend, store=store, rank=self._rank, world_size=self._world)
        deepspeed.init_distributed(dist_backend=backend, verbose=False)  # takes the group as it is
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
        scorer = PolicyModel(model, self._kinds)
        self._device = torch.device("cuda" if cuda else "cpu")
        self._reference = None
        if self._objective.needs_reference and self._adapters is None:
            self._reference = copy.deepcopy(scorer).to(self._device).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in scorer.parameters() if parameter.requires_grad],
            lr=self._settings.learning_rate,
            betas=self._settings.betas,
            eps=self._settings.epsilon,
            weight_decay=self._settings.weight_decay,
        )
        s = self._settings
        rate = partial(setup.share, warmup=s.warmup, steps=s.steps, final=s.final_rate)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        self._engine, *_ = deepspeed.initialize(
            model=scorer, optimizer=optimizer, lr_scheduler=rates, config=self._deepspeed_config()
        )
        return sum(getattr(p, "ds_numel", p.numel()) for p in scorer.parameters())

    def _deepspeed_config(self) -> dict:
        return {
            "train_micro_batch_size_per_gpu": 1,  # not used for anything: the loss is normalised by row weights
            "gradient_accumulation_steps": 1,  # boundaries are set by hand, micro-batches differ in number
            "zero_optimization": {"stage": self._settings.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": self._settings.gradient_clip,
            "bf16": {"enabled": self._settings.dtype == "bfloat16"},
            "steps_per_print": 10**9,
        }

    def step(self, items: list[Item], micro_batches: int, mix: float) -> StepReport:
        """One optimiser step on this rank's items. All ranks run the same number of micro-batches.

        When a loss of any rank, or the gradient, is not finite, no rank takes the step: weights, moments and schedule
        stay as they are, and nothing of the gradient is left for the next step.
        """
        tally, finite, everywhere = StepMetrics(), True, True
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
            start = self._start(batch)  # first: at ZeRO stage 3 nothing may run between a forward and its backward pass
            logp, entropy = self._engine(**batch.scoring(), parts=self._parts(len(batch.targets)))
            loss, seen = micro_batch_loss(batch, logp, entropy, start, self._objective, mix)
            tally.merge(seen)
            finite = finite and math.isfinite(loss.item())
            last = index == micro_batches - 1
            if last and not (everywhere := self._everywhere(finite)):
                # A loss can be infinite and its gradient finite (log-probability −∞). The gradient is spoilt on every
                # rank, so that whatever is not finite takes one way: DeepSpeed's own, which clears all its buffers.
                loss = loss * math.nan
            self._engine.set_gradient_accumulation_boundary(last)
            # DeepSpeed averages gradients over ranks; row weights already add up over the whole batch.
            self._engine.backward(loss * self._world)
        norm, taken = self._move()
        if taken and not everywhere:
            raise RuntimeError("DeepSpeed took a step with a gradient that is not finite")
        return StepReport(tally=tally, gradient_norm=norm, learning_rate=rate, skipped=not taken, finite=finite)

    def _parts(self, tokens: int) -> int:
        """Of the output layer: as many as the rank needs that scores most, where all ranks have to use it together."""
        parts = self._engine.module.parts(tokens)
        if self._settings.zero_stage < 3:
            return parts
        most = torch.tensor([parts], device=self._device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most.item())

    def _everywhere(self, finite: bool) -> bool:
        """Whether it holds on all ranks."""
        wrong = torch.tensor([0.0 if finite else 1.0], device=self._device)
        torch.distributed.all_reduce(wrong, torch.distributed.ReduceOp.MAX)
        return not wrong.item()

    def _move(self) -> tuple[float, bool]:
        """Takes the step or, where the gradient is not finite, clears it. Returns its norm and whether it was taken.

        All ranks have the same norm, as gradients (ZeRO 0) or the norms of their parts have been reduced by now.
        """
        if self._settings.zero_stage == 0:
            # DeepSpeed reports a norm only with ZeRO, and does not look whether it is finite. Not clipped yet.
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
    def _start(self, batch: MicroBatch) -> Tensor | None:
        """Log-probabilities [N] under the start model, 0 for the anchor's tokens, which are not compared with it."""
        if not self._objective.needs_reference:
            return None
        *_, scored = batch.compared
        found = torch.zeros(len(batch.targets), device=self._device)
        if self._reference is not None:
            if scored:
                found[:scored], _ = self._reference(**batch.comparing())
        elif self._adapters is not None and (scored or self._settings.zero_stage == 3):  # there all ranks take part
            asked = batch.comparing()
            if not scored:  # the layers run for the other ranks, on rows of which no token is scored
                whole = batch.scoring()
                asked |= {name: whole[name] for name in ("input_ids", "packing", "heard")}
            with self._adapters.disabled():
                logp, _ = self._engine.module(**asked, parts=self._parts(len(asked["targets"])))
            found[:scored] = logp
        return found

    def publish(self, version: int, probe: list[np.ndarray]) -> tuple[WeightUpdate, list[np.ndarray]] | None:
        """Rank 0 sends the weights and scores the probe; returns the parcel and log-probabilities [L − 1] each, of all
        tokens but those of the first step. What is to be broadcast is announced, and `deliver` sends it."""
        logps = self._probe(probe)
        source, scale = self._source()
        if self._settings.exchange == "broadcast":
            return (replace(self._announce(source, version), scale=scale), logps) if self._rank == 0 else None
        weights = iter(source)
        try:
            if self._rank != 0:
                return None
            if self._sender is None:
                self._sender = new_sender(self._settings.exchange, self._settings.run, self._settings.folder)
            parcel = self._sender.send(source.groups, weights, version, whole=source.whole)
            return replace(parcel, scale=scale), logps
        finally:
            for _ in weights:  # whatever has failed here: the others gather every group, and would wait for this rank
                pass

    def _source(self) -> tuple[WeightSource, float | None]:
        """What workers need to follow: weights, or adapters and their scale."""
        model, sharded = self._engine.module.model, self._settings.zero_stage == 3
        if self._adapters is None:
            return WeightSource(model, sharded=sharded), None
        return WeightSource(model, sharded=sharded, named=self._adapters.parameters()), self._adapters.config.scale

    def _announce(self, source: WeightSource, version: int) -> WeightUpdate:
        import ray

        if self._broadcaster is None:
            host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
            self._broadcaster = BroadcastSender(host, self._device)
        return self._broadcaster.announce(source.groups, version, whole=source.whole)

    def deliver(self, call: BroadcastCall) -> str | None:
        """Broadcasts the weights as they were announced. Returns why that broke off."""
        source, _ = self._source()
        weights = iter(source)
        try:
            if self._broadcaster is not None:
                return self._broadcaster.deliver(source.groups, weights, call)
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
            everything, plain = torch.zeros_like(sources), torch.ones(len(sources), device=self._device)
            # At ZeRO stage 3 the layers gather themselves, one after the other, as in a step.
            scored, _ = self._engine.module(inputs[None], sources, inputs[streams:], everything, plain)
            logps.append(scored.float().cpu().numpy())
        self._engine.empty_partition_cache()  # or layers that were fetched ahead, for a step, would stay whole
        return logps

    def _gathered(self):
        """All parameters whole on every rank, for as long as the context lasts."""
        import deepspeed

        sharded = self._settings.zero_stage == 3
        return deepspeed.zero.GatheredParameters(list(self._engine.module.parameters()), enabled=sharded)

    def save(self, directory: Path) -> str:
        """Writes its part of a checkpoint (`learner.checkpoint`); returns the fingerprint of the parameters.

        Ranks do not wait for one another, so that one whose disk is full holds up nobody. Raises OSError.
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
        """Goes on, bit for bit, from what `save` wrote: weights, optimiser and schedule.

        The group must have as many ranks as then, at the same ZeRO stage. fingerprint: of the parameters that were
        saved. Raises InputError when they are others, or when a file is damaged.
        """
        check_saved_state(self._engine.module.model, directory, fingerprint, self._adapters)
        state = read_state_tree(self._state_file(directory))
        if self._settings.zero_stage < 3:  # else they come with the optimiser's state
            load_model(self._engine.module.model, directory, self._adapters)
        try:
            restore_state(self._engine, self._settings.zero_stage, self._world, state)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self._state_file(directory)} holds no state of this optimiser: {error!r}") from error

    def _state_file(self, directory: Path) -> Path:
        return directory / "optimizer" / f"rank-{self._rank}.safetensors"

    def close(self) -> None:
        for sender in (self._sender, self._broadcaster):
            if sender is not None:
                sender.close()
