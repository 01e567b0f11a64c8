"""A learner rank: the Ray actor around one DeepSpeed engine."""

import copy
import math
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from learner.freezing import freeze
from learner.rows import Item, MicroBatch, Row, collate, split
from learner.scorer import Scorer
from learner.send import SharedMemorySender, named_weights
from learner.step import Objective, micro_batch_loss
from learner.tally import Tally
from speech.families import Family
from speech.interleave import kind_table
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class RankSettings:
    """What every rank of a group is started with."""

    checkpoint: str
    run: str
    dtype: str
    """"float32" or "bfloat16"."""
    zero_stage: int
    learning_rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    gradient_clip: float
    warmup: int
    """Steps of linear warm-up."""
    steps: int
    """Length of the schedule."""
    final_rate: float
    """Learning rate at the end of the cosine, as a share of the highest; 1 keeps it constant."""
    micro_batch_rows: int
    threads: int
    temperature: float
    """Of the sampler: the learner scores the same distribution."""
    frozen: tuple[str, ...]
    """Patterns of parameter names that are not trained."""
    gpu: bool
    """Whether Ray gave the rank a GPU; without, it stays on the CPU even where there is one."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a rank saw of a step."""

    tally: Tally
    gradient_norm: float
    learning_rate: float


class LearnerRank:
    """One process of the learner group. `connect` must be called on all ranks at once."""

    def __init__(self, rank: int, world: int, settings: RankSettings, family: Family, objective: Objective) -> None:
        self._rank, self._world = rank, world
        self._settings, self._objective = settings, objective
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._kinds = torch.from_numpy(kind_table(self._vocabulary))
        torch.manual_seed(0)  # nothing random is left in the learner; this keeps it so
        self._sender: SharedMemorySender | None = None

    def address(self) -> tuple[str, int]:
        """Where the group can meet: this process's address and a free port."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return host, free.getsockname()[1]

    def connect(self, host: str, port: int) -> int:
        """Joins the group, loads the model and builds the DeepSpeed engine. Returns the number of parameters."""
        cuda = self._settings.gpu
        os.environ.update(
            RANK=str(self._rank), LOCAL_RANK="0", WORLD_SIZE=str(self._world), MASTER_ADDR=host, MASTER_PORT=str(port)
        )
        if not cuda:
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(self._settings.threads)
        import deepspeed
        from transformers import AutoModelForCausalLM

        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
        dtype = getattr(torch, self._settings.dtype)
        model = AutoModelForCausalLM.from_pretrained(self._settings.checkpoint, dtype=dtype)
        freeze(model, self._settings.frozen)
        scorer = Scorer(model, self._kinds)
        self._device = torch.device("cuda" if cuda else "cpu")
        self._reference = None
        if self._objective.needs_reference:
            self._reference = copy.deepcopy(scorer).to(self._device).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in scorer.parameters() if parameter.requires_grad],
            lr=self._settings.learning_rate,
            betas=self._settings.betas,
            eps=self._settings.epsilon,
            weight_decay=self._settings.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self._engine, *_ = deepspeed.initialize(
            model=scorer, optimizer=optimizer, lr_scheduler=schedule, config=self._deepspeed_config()
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

    def _rate(self, step: int) -> float:
        """Share of the highest learning rate: linear warm-up, then cosine."""
        s = self._settings
        if step < s.warmup:
            return (step + 1) / (s.warmup + 1)
        progress = min(1.0, (step - s.warmup) / max(1, s.steps - s.warmup))
        return s.final_rate + (1.0 - s.final_rate) * 0.5 * (1.0 + float(np.cos(np.pi * progress)))

    def step(self, items: list[Item], micro_batches: int, mix: float) -> StepReport:
        """One optimiser step on this rank's items. All ranks run the same number of micro-batches."""
        tally = Tally()
        rate = self._engine.get_lr()[0]
        for index, part in enumerate(split(items, micro_batches)):
            batch = collate(
                part,
                pad=self._vocabulary.pad,
                routes=len(self._objective.routes),
                temperature=self._settings.temperature,
                device=self._device,
                scored=self._scored,
            )
            logp, entropy = self._engine(
                batch.input_ids, batch.sources, batch.targets, batch.allowed, batch.temperatures
            )
            loss, seen = micro_batch_loss(batch, logp, entropy, self._start(batch), self._objective, mix)
            tally.merge(seen)
            self._engine.set_gradient_accumulation_boundary(index == micro_batches - 1)
            # DeepSpeed averages gradients over ranks; row weights already add up over the whole batch.
            self._engine.backward(loss * self._world)
        if self._settings.zero_stage == 0:
            norm = _finite(self._norm_without_zero())
            self._engine.step()
        else:
            self._engine.step()
            norm = _finite(float(self._engine.get_global_grad_norm()))
        return StepReport(tally=tally, gradient_norm=norm, learning_rate=rate)

    def _scored(self, item: Item, row: Row) -> np.ndarray:
        return self._objective.scored(row.channels, item, row)

    @torch.no_grad()
    def _start(self, batch: MicroBatch) -> Tensor | None:
        """Log-probabilities [N] under the start model, 0 for the anchor's tokens, which are not compared with it."""
        rows, tokens = batch.compared
        if self._reference is None:
            return None
        found = torch.zeros(len(batch.targets), device=self._device)
        if tokens:
            parts = (batch.sources, batch.targets, batch.allowed, batch.temperatures)
            found[:tokens], _ = self._reference(batch.input_ids[:rows], *(part[:tokens] for part in parts))
        return found

    def _norm_without_zero(self) -> float:
        """DeepSpeed reports a norm only with ZeRO. Gradients have been averaged over the ranks by now, not clipped."""
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def publish(self, version: int, probe: list[np.ndarray]) -> tuple[Path, int, list[np.ndarray]] | None:
        """Rank 0 writes the weights and scores the probe; returns (file, bytes, log-probabilities [L − 1] each)."""
        with self._gathered():
            logps = self._probe(probe)
            if self._rank != 0:
                return None
            if self._sender is None:
                self._sender = SharedMemorySender(self._settings.run)
            weights = {name: parameter.data for name, parameter in named_weights(self._engine.module.model)}
            path, size = self._sender.send(weights, version)
        return path, size, logps

    @torch.no_grad()
    def _probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        logps = []
        for ids in sequences:
            inputs = torch.from_numpy(ids.astype(np.int64)).to(self._device)
            sources = torch.arange(len(ids) - 1, device=self._device)
            everything, plain = torch.zeros_like(sources), torch.ones(len(sources), device=self._device)
            scored, _ = self._engine.module(inputs[None], sources, inputs[1:], everything, plain)
            logps.append(scored.float().cpu().numpy())
        return logps

    def _gathered(self):
        """All parameters whole on every rank, for as long as the context lasts."""
        import deepspeed

        sharded = self._settings.zero_stage == 3
        return deepspeed.zero.GatheredParameters(list(self._engine.module.parameters()), enabled=sharded)

    def save(self, directory: Path) -> None:
        """Writes a Hugging Face checkpoint with the tokenizer, and under `optimizer/` the state to go on from."""
        with self._gathered():
            if self._rank == 0:
                model = self._engine.module.model
                state = {name: parameter.data.clone() for name, parameter in named_weights(model)}
                for alias in getattr(model, "_tied_weights_keys", None) or []:
                    if model.config.tie_word_embeddings:
                        state.pop(alias, None)
                model.save_pretrained(directory, state_dict=state)
                for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                    source = Path(self._settings.checkpoint) / name
                    if source.is_file():
                        shutil.copy(source, directory / name)
        self._engine.save_checkpoint(str(directory / "optimizer"), tag="state")

    def close(self) -> None:
        if self._sender is not None:
            self._sender.close()


def _finite(norm: float) -> float:
    """Raises when a gradient is not finite: DeepSpeed would skip the step, and every later one, without a word."""
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm}: a loss or a log-probability is not finite")
    return norm
