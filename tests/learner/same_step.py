"""Steps of a learner group by its ranks alone, to compare ZeRO stages and numbers of ranks.

Run `two_steps` as WORLD processes at once (`processes.run`). At each given ZeRO stage, the rank takes its share of two
steps of `mixed_rows`, scores a probe and saves a checkpoint. It returns the results by stage.
"""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from learner.engine import LearnerEngine
from learner.micro_batches import TrainingSample, micro_batches, split
from speech.families import PLAYGROUND
from tests.learner.examples import OBJECTIVE
from tests.learner.groups import MICRO_BATCH_TOKENS, mixed_rows, rank_settings
from tests.learner.ranks import weights

MIX = 0.4


def probe(rows: list[TrainingSample]) -> list[np.ndarray]:
    return [np.concatenate([rows[0].prompt_ids, rows[0].reply_ids])]


def two_steps(world: Path, stages: list[int], directory: Path, port: int, place: int, ranks: int) -> dict[int, dict]:
    rows = mixed_rows(world)
    shares = split(rows, ranks)
    count = micro_batches(shares, MICRO_BATCH_TOKENS, packing=True)

    def found(stage: int) -> dict:
        rank = LearnerEngine(place, ranks, rank_settings(world, stage), PLAYGROUND, OBJECTIVE)
        rank.connect("127.0.0.1", port)
        reports = [rank.step(shares[place], count, MIX) for _ in range(2)]
        logps = rank._probe(probe(rows))[0]
        folder = directory / str(stage)
        folder.mkdir(exist_ok=True)
        rank.save(folder)
        own = {name: tensor.numpy() for name, tensor in weights(rank).items()}
        saved = load_file(folder / "model.safetensors") if place == 0 else {}
        return {
            "reports": reports,
            "logps": logps,
            "weights": own,
            "saved": {name: tensor.numpy() for name, tensor in saved.items()},
        }

    return {stage: found(stage) for stage in stages}
