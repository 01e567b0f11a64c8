"""Learner ranks without Ray: what is the same bit for bit after a resume, and after a step that was skipped.

`at_every_stage` is to be run as WORLD processes at once (`processes.run`). At every ZeRO stage, this rank takes steps
straight, and goes on from a checkpoint of half-way in a new engine; it sends its weights on the way; then, where there
are several, the last of them has a loss, or a gradient, that is not finite. Returns what came out, by stage.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from learner import policy
from learner.config import LearnerConfig
from learner.engine import LearnerEngine
from learner.micro_batches import TrainingSample
from speech.families import PLAYGROUND
from tests.learner.examples import OBJECTIVE
from tests.learner.one_rank import sampled_rows
from weight_sync.source import WeightSource, named_weights

SETTINGS = LearnerConfig(
    checkpoint="",
    run="ranks",
    dtype="float32",
    zero_stage=0,
    learning_rate=1e-3,
    betas=(0.9, 0.95),
    epsilon=1e-8,
    weight_decay=0.1,
    gradient_clip=0.5,
    warmup=2,
    steps=8,
    final_rate=0.1,
    packing=True,
    gradient_checkpointing=True,
    threads=1,
    temperature=0.7,
    frozen=("model.layers.0.*",),
    gpu=False,
)

PARTS = 20_000
"""Logits at once: several parts on every rank, and not as many on each. At stage 3 all of them have to gather the
output layer as often."""

# The gradient of the divergence would not be finite where the loss is not: here it can be.
WITHOUT_KL = replace(OBJECTIVE, kl_text=0.0, kl_speech=0.0)


def infinite_loss(row: TrainingSample) -> TrainingSample:
    """Return a demonstration with an impossible token: its loss is infinite, with a finite gradient."""
    allowed = row.allowed.copy()
    allowed[3] = 31 ^ allowed[3]
    return replace(
        row, allowed=allowed, rollout_logprobs=None, advantages=(), weights=(), kl_weights=(0.0, 0.0), anchor_weight=1.0
    )


@contextmanager
def spoilt_gradient(rank: LearnerEngine) -> Iterator[None]:
    """Make the gradient of the logits NaN, whatever the loss is."""

    def hook(_module: object, _given: object, logits: torch.Tensor) -> None:
        logits.register_hook(lambda gradient: gradient * torch.nan)

    handle = rank._engine.module.model.lm_head.register_forward_hook(hook)
    yield
    handle.remove()


def weights(rank: LearnerEngine) -> dict[str, torch.Tensor]:
    with rank._gathered():
        return {name: p.detach().clone() for name, p in named_weights(rank._engine.module.model)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one) and set(one) == set(other)


class NoSpace:
    """A sender whose disk is full after the first group."""

    def send(self, groups: object, weights: Iterator, *_: object, **__: object) -> None:
        next(weights)
        raise OSError("no space")


def sent(rank: LearnerEngine) -> dict:
    """Return what is sent, the largest gathered share of the model, and what this rank does if rank 0 cannot send."""
    model, everything = rank._engine.module.model, weights(rank)
    given: dict[str, torch.Tensor] = {}

    def whole() -> int:
        return sum(parameter.numel() for parameter in model.parameters())  # 0 of one that is partitioned

    most = 0
    for group in WeightSource(model, sharded=rank._settings.zero_stage == 3, group_bytes=1 << 20):
        given |= {name: tensor.clone() for name, tensor in group.items()}
        most = max(most, whole())
    rank._sender, failed = NoSpace(), None
    try:
        rank.publish(2, [])
    except OSError as error:
        failed = str(error)
    rank._sender = None
    if published := rank.publish(2, [np.arange(9, dtype=np.int32)]):
        file = load_file(published[0].path)
        given = file if same(given, file) else {}
        rank.close()
    rank._probe([np.arange(9, dtype=np.int32)])
    left = whole()
    moved = {name: tensor for name, tensor in everything.items() if not name.startswith("model.layers.0.")}
    total = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    return {"right": same(given, moved), "most": most / total, "left": left / total, "failed": failed}


def found(
    settings: LearnerConfig, directory: Path, port: int, place: int, world: int, rows: list[TrainingSample]
) -> dict:
    def engine() -> LearnerEngine:
        rank = LearnerEngine(place, world, settings, PLAYGROUND, WITHOUT_KL)
        rank.connect("127.0.0.1", port)
        return rank

    def batch(number: int) -> list[TrainingSample]:
        return [rows[(number + i) % len(rows)] for i in range(place, place + 3)]

    straight = engine()
    drawn = torch.get_rng_state()
    for number in range(2):
        straight.step(batch(number), 2, 0.5)
    start = weights(straight)
    directory.mkdir(exist_ok=True)
    saved = straight.save(directory)
    torch.distributed.barrier()
    resumed = engine()
    resumed.load(directory, saved)
    result: dict = {"loaded": same(start, weights(resumed))}
    result["sent"] = sent(straight)  # which changes nothing of what comes
    rates = [[rank.step(batch(number), 2, 0.5).learning_rate for number in range(2, 5)] for rank in (straight, resumed)]
    result |= {"rates": rates, "moved": not same(start, weights(resumed))}
    result["resumed"] = same(weights(straight), weights(resumed))
    result["skipped"] = {}
    for kind in ("loss", "gradient") if world > 1 else ():
        before = weights(straight)
        last = place == world - 1
        with spoilt_gradient(straight) if last and kind == "gradient" else nullcontext():
            given = [rows[0], infinite_loss(rows[0])] if last and kind == "loss" else batch(0)
            report = straight.step(given, 2, 0.5)
        kept = same(before, weights(straight))
        taken = [rank.step(batch(5), 2, 0.5) for rank in (straight, resumed)]
        result["skipped"][kind] = {
            "skipped": report.skipped,
            "finite": report.finite,
            "norm": str(report.gradient_norm),
            "kept": kept,
            "after": same(weights(straight), weights(resumed)) and not same(before, weights(straight)),
            "rates": [step.learning_rate for step in taken],
            "again": [step.skipped for step in taken],
        }
    result["drew"] = not torch.equal(drawn, torch.get_rng_state())
    return result


def at_every_stage(checkpoint: Path, directory: Path, port: int, place: int, world: int) -> dict[int, dict]:
    policy.MAX_LOGITS = PARTS
    examples = sampled_rows(checkpoint)
    settings = replace(SETTINGS, checkpoint=str(checkpoint))
    return {
        stage: found(replace(settings, zero_stage=stage), directory / str(stage), port, place, world, examples)
        for stage in range(4)
    }
