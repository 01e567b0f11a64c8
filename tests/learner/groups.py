"""Real learner groups, and rows for them."""

from pathlib import Path

import numpy as np

from cluster.placement import Placement
from data.records import read_demonstrations
from learner.config import LearnerConfig
from learner.group import LearnerGroup, LearnerGroupConfig
from learner.micro_batches import TrainingSample
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.learner.examples import OBJECTIVE
from weight_sync.update import Exchange


def mixed_rows(world: Path) -> list[TrainingSample]:
    """Return demonstrations, most of them turned into sampled replies."""
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    rng = np.random.default_rng(0)
    found = []
    for index, d in enumerate(read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:14]):
        sampled = index < 9
        found.append(
            TrainingSample(
                prompt_ids=d.prompt_ids,
                reply_ids=d.reply_ids,
                channels=vocabulary.channels(d.reply_ids),
                anchor_weight=0.0 if sampled else 1 / 5,
                rollout_logprobs=rng.normal(-0.5, 0.2, len(d.reply_ids)).astype(np.float32) if sampled else None,
                advantages=(float(rng.normal()),) if sampled else (),
                weights=(1 / 9 / 6,) if sampled else (),
                kl_weights=(1 / 9 / 6, 1 / 9 / 30) if sampled else (0.0, 0.0),
            )
        )
    return found


MICRO_BATCH_TOKENS = 400


def rank_settings(world: Path, stage: int, run: str = "test", exchange: Exchange = "shm") -> LearnerConfig:
    return LearnerConfig(
        checkpoint=str(world / "base"),
        run=run,
        dtype="float32",
        zero_stage=stage,
        learning_rate=1e-3,
        betas=(0.9, 0.95),
        epsilon=1e-8,
        weight_decay=0.01,
        gradient_clip=0.5,
        warmup=0,
        steps=10,
        final_rate=1.0,
        packing=True,
        gradient_checkpointing=False,
        threads=1,
        temperature=1.0,
        frozen=(),
        gpu=False,
        exchange=exchange,
    )


def learner_group(
    world: Path,
    ranks: int,
    stage: int,
    run: str = "test",
    place: Placement | None = None,
    exchange: Exchange = "shm",
    **changes,
) -> LearnerGroup:
    """Make a group without starting it. place: None makes a new placement. changes: Fields of the group's settings."""
    settings = rank_settings(world, stage, run, exchange)
    fields = {
        "ranks": ranks,
        "start_seconds": 200,
        "step_seconds": 100,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "skips_in_a_row": 2,
        "faults": Path("/nonexistent"),
    }
    place = place or Placement("learner", *[{"CPU": 0.5}] * ranks)
    return LearnerGroup(LearnerGroupConfig(**(fields | changes)), settings, PLAYGROUND, OBJECTIVE, place)
