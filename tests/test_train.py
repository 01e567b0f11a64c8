"""The main job, for real: Ray, vLLM, DeepSpeed, decoded audio. And what the command line says to bad input."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import soundfile

from tests.commands import Job, duet

pytestmark = pytest.mark.e2e
COLUMNS = """iteration weight_version lambda lambda_raw gate_quality gate_information loss_preference loss_anchor
kl_text kl_speech entropy_text entropy_speech score_answer score_heard score_manner logp_gap_text logp_gap_speech
replies replies_dropped seconds_rollout seconds_reward seconds_learn seconds_sync""".split()


@pytest.fixture(scope="module")
def run(root, few, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run of three iterations with two rollout workers."""
    runs = tmp_path_factory.mktemp("runs")
    done = duet(
        root,
        "train",
        "train.num_steps=3",
        "run.name=short",
        "run.seed=7",
        f"run.directory={runs}",
        f"data.validation={{held_out: {few}}}",
        "rollout.num_workers=2",
        "validation.num_quality_samples=2",
        "validation.recording_interval=2",
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return runs / "short", done


def test_summary_holds_what_the_contract_says(run):
    directory, _ = run
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["iterations"] == 3
    assert summary["weight_version"] == 3
    assert summary["seed"] == 7
    assert 0.0 <= summary["lambda_first"] <= 0.8
    for when in ("before", "after"):
        measured = summary["held_out"][when]
        assert measured["prompts"] == 32
        for name in ("answer", "heard", "manner"):
            assert 1.0 <= measured[name] <= 5.0
        for name in ("answer_accuracy", "heard_accuracy", "spoken_right"):
            assert 0.0 <= measured[name] <= 1.0
    # The base model speaks: most replies say what their text says.
    assert summary["held_out"]["before"]["heard_accuracy"] > 0.5
    assert summary["workers"] == {"rollout": 2, "reward": 2, "learner": 2}
    assert set(summary["versions"]) >= {"vllm", "ray", "deepspeed", "torch"}
    assert all(summary["seconds"][name] > 0 for name in ("total", "rollout", "reward", "learn", "sync"))
    assert summary["tokens"]["speech"] > summary["tokens"]["text"] > 0


def test_a_few_questions_are_answered_between_before_and_after(run):
    directory, _ = run
    stages = {int(path.stem): pq.read_table(path).to_pylist() for path in (directory / "listening").glob("*.parquet")}
    assert sorted(stages) == [0, 2, 3]
    assert {number: {row["weight_version"] for row in rows} for number, rows in stages.items()} == {
        0: {0},
        2: {2},
        3: {3},
    }
    before = pq.read_table(directory / "evaluations/before/held_out.parquet").to_pylist() + stages[0]
    seeds = {row["prompt_id"]: row["seed"] for row in before}
    assert len(stages[2]) == 12
    assert all(row["seed"] == seeds[row["prompt_id"]] for row in stages[2])
    assert any(row["total"] is not None for row in stages[2])


def test_every_iteration_is_on_record(run):
    directory, _ = run
    rows = pq.read_table(directory / "iterations.parquet").to_pylist()
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["weight_version"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert [name for name in COLUMNS if name not in row] == []
        assert row["replies"] == 64
        assert max(row["logp_gap_text"], row["logp_gap_speech"]) < 1e-4
        assert row["probe_gap"] < 1e-3
        assert row["loss"] == pytest.approx(
            (1 - row["lambda"]) * row["loss_anchor"] + row["lambda"] * row["loss_preference"], abs=1e-6
        )
    assert rows[1]["lambda"] == pytest.approx(0.1 * rows[1]["lambda_raw"] + 0.9 * rows[0]["lambda"], abs=1e-9)
    # The first step starts at the reference model.
    assert rows[0]["kl_text"] == pytest.approx(0.0, abs=1e-6)
    assert rows[2]["kl_text"] > 0


def test_every_reply_is_on_record(run):
    directory, _ = run
    for iteration in (1, 2, 3):
        rows = pq.read_table(directory / f"replies/{iteration:06d}.parquet").to_pylist()
        assert len(rows) == 64
        assert {row["weight_version"] for row in rows} == {iteration - 1}
        assert {row["worker"] for row in rows} == {"rollout-0", "rollout-1"}
        assert all(len(row["token_ids"]) == len(row["logps"]) == len(row["channels"]) for row in rows)


def test_there_is_something_to_see_and_hear(run):
    directory, done = run
    assert (directory / "lambda.png").stat().st_size > 5000
    assert (directory / "scores.png").stat().st_size > 5000
    recordings = sorted((directory / "audio").glob("*.wav"))
    assert len(recordings) == 18
    for path in recordings:
        samples, rate = soundfile.read(path)
        assert 0.2 < len(samples) / rate < 6.0
        assert abs(samples).max() > 0.01
    assert "λ" in done.stdout
    assert "answer" in done.stdout


def test_the_checkpoint_is_a_hugging_face_one_with_the_new_weights(run, world):
    from safetensors.torch import load_file

    directory, _ = run
    checkpoint = directory / "checkpoints" / "000003"
    new, old = load_file(checkpoint / "model.safetensors"), load_file(world / "base/model.safetensors")
    assert set(new) == set(old)
    assert any(not new[name].equal(old[name]) for name in new)
    assert (checkpoint / "tokenizer.json").read_bytes() == (world / "base/tokenizer.json").read_bytes()
    assert (checkpoint / "optimizer").is_dir()
    last = pq.read_table(directory / "iterations.parquet").to_pylist()[-1]
    state = json.loads((checkpoint / "controller.json").read_text())
    assert state == {
        "iteration": 3,
        "weight_version": 3,
        "mix": {"smoothed": pytest.approx(last["lambda"]), "updates": 3, "override": None},
        "prompts": 48,
        "demonstrations": 48,
        "data": state["data"],
    }
    assert set(state["data"]) == {
        "data.prompts", "data.sft", "algorithm.dpo.pairs_file", "data.validation.held_out",
    }  # fmt: skip


def test_a_name_that_is_taken_is_refused(root, run):
    directory, _ = run
    done = duet(root, "train", "run.name=short", f"run.directory={directory.parent}")
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_input_is_one_sentence_and_nothing_is_written(root, world, tmp_path):
    """As the command line says it; tests/malformed has hundreds more at the same door."""
    broken = tmp_path / "broken.parquet"
    table = pq.read_table(world / "data/train.parquet").slice(0, 20)
    pq.write_table(table.drop_columns(["facts"]), broken)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cases = {
            "run.itertions=3": "unknown configuration key 'run.itertions'",
            f"data.prompts={broken}": "has no column 'facts'",
            f"metrics.port={port}": f"metrics.port: port {port} on 127.0.0.1 is in use",
        }
        for override, complaint in cases.items():
            done = duet(root, "train", override, "run.name=bad", f"run.directory={tmp_path / 'runs'}")
            assert done.returncode == 2, done.stderr
            assert complaint in done.stderr
            assert "Traceback" not in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.timeout(400)
def test_a_run_that_is_killed_goes_on_to_the_numbers_that_it_would_have_had(root, run, few, tmp_path):
    """SIGKILL to the driver and to all that it started, in the third iteration; then --resume. To the digit."""
    straight, _ = run
    settings = (
        "train.num_steps=3", "run.name=short", "run.seed=7", f"run.directory={tmp_path}",
        f"data.validation={{held_out: {few}}}", "rollout.num_workers=2", "validation.num_quality_samples=2",
        "checkpoint.interval=1", "checkpoint.max_to_keep=0",
    )  # fmt: skip
    with Job(root, tmp_path / "output.txt", "train", *settings) as job:
        # The iteration is on record, and shown, before its checkpoint is written.
        written = tmp_path / "short/checkpoints/000002"
        job.until(lambda output: "2/3" in output and written.is_dir(), "a checkpoint of the second iteration")
    killed = tmp_path / "short"
    assert not (killed / "summary.json").exists()
    refused = duet(root, "train", "--resume", str(killed), "learner.learning_rate=0.1")
    assert refused.returncode == 2
    assert "learner.learning_rate: 0.0003 → 0.1" in refused.stderr
    # A run may be moved, and its checkpoint of the third iteration, if there is one, may be damaged.
    moved = tmp_path / "elsewhere" / "short"
    shutil.copytree(killed, moved)
    shutil.rmtree(moved / "checkpoints" / "000003", ignore_errors=True)
    done = duet(root, "train", "--resume", str(moved))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "after iteration 2" in done.stdout
    names = pq.read_table(straight / "iterations.parquet").column_names
    of_the_clock = ("seconds_", "idle_", "sync_bytes_per_second")
    columns = [name for name in names if not name.startswith(of_the_clock)]
    one, other = (pq.read_table(path / "iterations.parquet").select(columns) for path in (straight, moved))
    assert one.equals(other)
    for iteration in (1, 2, 3):
        name = f"replies/{iteration:06d}.parquet"
        assert pq.read_table(straight / name).equals(pq.read_table(moved / name))
    weights = "checkpoints/000003/model.safetensors"
    assert (straight / weights).read_bytes() == (moved / weights).read_bytes()
    summaries = [json.loads((path / "summary.json").read_text()) for path in (straight, moved)]
    assert summaries[0]["held_out"]["after"] == summaries[1]["held_out"]["after"]
    assert summaries[0]["held_out"]["before"] == pytest.approx(summaries[1]["held_out"]["before"])
    assert summaries[0]["signal_quality"] == pytest.approx(summaries[1]["signal_quality"])
    finished = duet(root, "train", "--resume", str(moved))
    assert finished.returncode == 2
    assert "has finished its 3 iterations" in finished.stderr
