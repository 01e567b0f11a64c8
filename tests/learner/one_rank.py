"""One learner rank by itself, without Ray, in a process of its own: DeepSpeed's engine is one to a process.

`two_steps` takes two steps on replies that were sampled at temperature 0.7 from tokens of one kind at each position,
with a loss on speech tokens only. Returns which parameters changed, how far the learner's log-probabilities were from
the sampler's, and how many rows the output layers saw; or the refusal.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.errors import InputError
from data.records import read_demonstrations
from learner.config import LearnerConfig, RouteLoss
from learner.engine import LearnerEngine
from learner.micro_batches import TrainingSample
from speech.families import PLAYGROUND
from speech.grammar import token_kinds
from speech.vocabulary import Vocabulary, select
from tests.learner.examples import OBJECTIVE
from weight_sync.source import named_weights

TEMPERATURE = 0.7
SPEECH = replace(OBJECTIVE, routes=(RouteLoss(channel="speech", weight=1.0),), kl_text=0.0)


def sampled_rows(checkpoint: Path) -> list[TrainingSample]:
    """Turn demonstrations into samples, with the log-probabilities that a sampler would have reported."""
    vocabulary = Vocabulary.from_checkpoint(checkpoint, PLAYGROUND.tokens)
    kinds = token_kinds(vocabulary)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rows = []
    for index, d in enumerate(read_demonstrations(checkpoint.parent / "data/demonstrations.parquet", vocabulary)[:4]):
        ids = torch.from_numpy(np.concatenate([d.prompt_ids, d.reply_ids]).astype(np.int64))
        # Narrower than the structure, outside of which the base model leaves hardly any probability to mask.
        allowed = kinds[d.reply_ids]
        with torch.no_grad():
            logits = model(ids[None]).logits[0, len(d.prompt_ids) - 1 : -1] / TEMPERATURE
        logits[torch.from_numpy((kinds[None] & allowed[:, None]) == 0)] = float("-inf")
        logps = torch.log_softmax(logits, -1).gather(-1, ids[len(d.prompt_ids) :, None])[:, 0].numpy()
        rows.append(
            TrainingSample(
                prompt_ids=d.prompt_ids,
                reply_ids=d.reply_ids,
                channels=vocabulary.channels(d.reply_ids),
                allowed=allowed,
                rollout_logprobs=logps,
                advantages=(1.0 if index % 2 else -1.0,),
                weights=(1 / 4 / 6,),
                kl_weights=(1 / 4 / 6, 1 / 4 / 30),
            )
        )
    return rows


def two_steps(checkpoint: Path, stage: int, frozen: tuple[str, ...], port: int, place: int, world: int) -> dict:
    try:
        return _found(checkpoint, stage, frozen, port, place, world)
    except InputError as error:
        return {"refused": str(error)}


def _found(checkpoint: Path, stage: int, frozen: tuple[str, ...], port: int, place: int, world: int) -> dict:
    settings = LearnerConfig(
        checkpoint=str(checkpoint),
        run="one-rank",
        dtype="float32",
        zero_stage=stage,
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        epsilon=1e-8,
        weight_decay=0.1,
        gradient_clip=1.0,
        warmup=0,
        steps=2,
        final_rate=1.0,
        packing=True,
        gradient_checkpointing=False,
        threads=1,
        temperature=TEMPERATURE,
        frozen=frozen,
        gpu=False,
    )
    rank = LearnerEngine(place, world, settings, PLAYGROUND, SPEECH)
    rank.connect("127.0.0.1", port)
    rows = sampled_rows(checkpoint)
    seen: dict[str, list[int]] = {"policy": [], "start model": []}
    for name, scorer in (("policy", rank._engine.module), ("start model", rank._reference)):
        scorer.model.lm_head.register_forward_hook(
            lambda _, given, __, rows=seen[name]: rows.append(given[0][..., 0].numel())
        )
    first, _ = (rank.step(rows, 2, 1.0) for _ in range(2))
    before = load_file(checkpoint / "model.safetensors")
    after = {name: parameter.detach() for name, parameter in named_weights(rank._engine.module.model)}
    return {
        "changed": [name for name in before if not torch.equal(before[name], after[name])],
        "unchanged": [name for name in before if torch.equal(before[name], after[name])],
        "gap": max(first.metrics.maxima.values()),
        "output_rows": {name: sum(rows) for name, rows in seen.items()},
        "tokens_with_loss": 2 * sum(int(select(row.channels, "speech").sum()) for row in rows),
    }
