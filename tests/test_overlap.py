"""One run that is ahead of its learner and decodes with actors of their own, one of which is killed.

Replies are drawn while the learner steps: the same questions in the same order, under weights one step older. What is
heard is what was said.
"""

import json
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from data.sampler import PROMPTS, EpochSampler
from deploy.preflight.memory import MIB, PROCESS_BYTES
from observability.run_directory import read_events
from playground.codec import PlaygroundCodec
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.chaos.members import megabytes
from tests.commands import Job

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
ITERATIONS = 4


def decoders(job: Job) -> list[psutil.Process]:
    return [process for process in job.processes if "ray::SpeechDecoder" in " ".join(process.cmdline())]


@pytest.fixture(scope="module")
def run(root, tmp_path_factory) -> Path:
    """Its directory. A decoder was killed after the first iteration."""
    runs = tmp_path_factory.mktemp("runs")
    settings = (
        f"train.num_steps={ITERATIONS}", "run.name=ahead", f"run.directory={runs}", "data.validation={}",
        "rollout.max_staleness_steps=1", "weight_sync.backend=object_store",
        "model.freeze=[model.layers.0.*, model.embed_tokens.weight]",
        "reward.num_servers=1", "reward.decoders.num_workers=2", "reward.decoders.num_cpus=0.25",
        "validation.num_quality_samples=0", "validation.num_recordings=1", "validation.recording_interval=0",
    )  # fmt: skip
    with Job(root, runs / "output.txt", "train", *settings) as job:
        job.until(lambda output: f"1/{ITERATIONS}" in output, "the first iteration")
        mates = decoders(job)
        assert len(mates) == 2
        # What the doctor reckons with for each, without the weights of a codec.
        assert max(megabytes(mate) for mate in mates) < PROCESS_BYTES["reward"] / MIB
        mates[0].kill()
        assert job.process.wait(timeout=200) == 0, job.output
    return runs / "ahead"


def replies(run: Path, iteration: int) -> list[dict]:
    return pq.read_table(run / f"replies/{iteration:06d}.parquet").to_pylist()


def test_iterations_overlap_within_the_bound(run, world):
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert [row["staleness"] for row in rows] == [0] + [1] * (ITERATIONS - 1)
    # Weights came into some replies while they were drawn; both versions are within the bound.
    ledger, ids = EpochSampler(2560, 0, PROMPTS), pq.read_table(world / "data/train.parquet")["id"].to_pylist()
    for row in rows:
        drawn = replies(run, row["iteration"])
        newest = row["iteration"] - 1
        assert all(newest - 1 <= r["weight_version"] <= r["newest_version"] <= newest for r in drawn)
        assert [r["prompt_id"] for r in drawn[::4]] == [ids[index] for index in ledger.take(16)]
        assert all(r["total"] is not None or r["missing"] for r in drawn)
    later = rows[1:]
    assert all(row["logp_gap_text"] is None for row in later), "older weights drew them"
    assert max(row["probe_gap"] for row in rows) < 1e-4
    # Through Ray's object store came what is trained, three layers and the output.
    whole = (world / "base/model.safetensors").stat().st_size
    assert all(0.5 * whole < row["sync_bytes"] < 0.8 * whole for row in rows)
    assert all(row["sync_bytes_per_second"] == pytest.approx(row["sync_bytes"] / row["seconds_sync"]) for row in rows)
    # The learner is what everything waits for.
    assert sum(row["idle_learner"] for row in later) < 0.5 * len(later)


def test_a_run_with_decoders_bears_the_death_of_one(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["workers"] == {"rollout": 1, "reward": 1, "decoder": 2, "learner": 2}
    lost = [event for event in read_events(run) if event["kind"] == "actor_died"]
    assert [event["member"].startswith("decoder-") for event in lost] == [True]
    iterations = pq.read_table(run / "iterations.parquet").to_pylist()
    assert len(iterations) == ITERATIONS
    assert all(0.0 <= row["idle_decoder"] <= 1.0 for row in iterations)


def test_sound_is_the_codecs(run, world):
    codec = PlaygroundCodec.load(world / "codec")
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    rows = [row for number in range(1, ITERATIONS + 1) for row in replies(run, number)]
    assert len(rows) == 64 * ITERATIONS
    assert {dict(row["rater_versions"])["codec"] for row in rows} == {codec.version}
    for row in rows:
        codes = vocabulary.codes(np.array(row["token_ids"]))
        seconds = codec.decode(codes).seconds if len(codes) else 0.0
        assert row["seconds_audio"] == pytest.approx(seconds)
    assert sum("heard" in dict(row["scores"]) for row in rows) > 32 * ITERATIONS
