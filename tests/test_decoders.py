"""A run whose replies are decoded by actors of their own, one of which is killed: what is heard is what was said."""

import json
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from deploy.preflight.memory import HOLDS, MIB
from observability.run_directory import read_events
from playground.codec import PlaygroundCodec
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.chaos.members import megabytes
from tests.commands import Job

pytestmark = pytest.mark.e2e


def decoders(job: Job) -> list[psutil.Process]:
    return [process for process in job.processes if "ray::SpeechDecoder" in " ".join(process.cmdline())]


def test_a_run_with_decoders_bears_the_death_of_one(root, few, world, tmp_path):
    settings = (
        "run.iterations=2", "run.name=decoded", f"run.directory={tmp_path}", f"data.held_out={{held_out: {few}}}",
        "reward.servers=1", "reward.decoders.members=2", "reward.decoders.cpus=0.25",
        "evaluation.signal_samples=2", "evaluation.recordings=1", "evaluation.listen_every=0",
    )  # fmt: skip
    with Job(root, tmp_path / "output.txt", "train", *settings) as job:
        job.until(lambda output: "1/2" in output, "the first iteration")
        mates = decoders(job)
        assert len(mates) == 2
        # What the doctor reckons with for each, without the weights of a codec.
        assert max(megabytes(mate) for mate in mates) < HOLDS["reward"] / MIB
        mates[0].kill()
        assert job.process.wait(timeout=200) == 0, job.output
    run = tmp_path / "decoded"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["workers"] == {"rollout": 1, "reward": 1, "decoder": 2, "learner": 2}
    lost = [event for event in read_events(run) if event["kind"] == "actor_died"]
    assert [event["member"].startswith("decoder-") for event in lost] == [True]
    iterations = pq.read_table(run / "iterations.parquet").to_pylist()
    assert len(iterations) == 2
    assert all(0.0 <= row["idle_decoder"] <= 1.0 for row in iterations)
    assert_sound_is_the_codecs(run, world)


def assert_sound_is_the_codecs(run: Path, world: Path) -> None:
    codec = PlaygroundCodec.load(world / "codec")
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    rows = [row for number in (1, 2) for row in pq.read_table(run / f"replies/{number:06d}.parquet").to_pylist()]
    assert len(rows) == 128
    assert {dict(row["rater_versions"])["codec"] for row in rows} == {codec.version}
    for row in rows:
        codes = vocabulary.codes(np.array(row["token_ids"]))
        seconds = codec.decode(codes).seconds if len(codes) else 0.0
        assert row["seconds_audio"] == pytest.approx(seconds)
    assert sum("heard" in dict(row["scores"]) for row in rows) > 64
