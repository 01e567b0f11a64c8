"""Runs of a comparison: plans, reruns, and checks for mixed settings."""

import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from common.errors import InputError
from controller.launcher import RunFailed
from evaluation.ablation.arms import ARMS, choose_arms, plan_runs
from evaluation.ablation.runner import run_missing
from tests.evaluation.ablation.ablations import CONFIG, ablate, plans, write_run

# ---- arms and their runs


def test_a_stopped_comparison_has_whole_seeds(tmp_path):
    made = plans(tmp_path, "adaptive,two_stage", 2, "rollout.batch_size=8")
    assert [one.name for one in made] == ["adaptive-0", "two_stage-0", "adaptive-1", "two_stage-1"]
    assert made[1].config.mix_ratio.warmup_steps == 3  # half of the iterations
    assert made[1].arguments[-1] == "rollout.batch_size=8"
    assert (made[3].config.run.seed, made[3].config.run.name) == (1, "two_stage-1")


def test_every_arm_trains_in_its_own_way(tmp_path):
    settings = []
    for one in plans(tmp_path, ""):
        one.config.run.name = "same"
        settings.append(one.config.yaml())
    assert len(set(settings)) == len(ARMS)


@pytest.mark.parametrize(
    ("arms", "override", "reason"),
    [
        ("", "mix_ratio.ema_decay=0.5", "sets it"),
        ("", "mix_ratio={schedule: fixed}", "the arm"),
        ("adaptive", "run.seed=3", "the comparison sets it"),
        ("adaptive", "train.num_steps=3", "--iterations sets it"),
    ],
)
def test_what_the_arms_differ_in_is_not_overridden(tmp_path, arms, override, reason):
    with pytest.raises(InputError, match=reason):
        plans(tmp_path, arms, 1, override)


def test_an_unknown_arm_is_named():
    with pytest.raises(InputError, match="unknown arm 'adaptiv'; arms: anchor_only"):
        choose_arms("adaptive,adaptiv")


# ---- mixed settings


def test_mixed_settings_are_refused(tmp_path):
    for one in plans(tmp_path, "fixed_text,adaptive", 1, "learner.learning_rate=1e-5"):
        write_run(one)
    with pytest.raises(InputError, match=r"fixed_text-0 was run with other settings: learner.learning_rate was 1e-05"):
        run_missing(plans(tmp_path), tmp_path)
    with pytest.raises(InputError, match="other settings"):
        ablate(tmp_path, "--write", "--arms", "adaptive")


def test_a_run_of_another_length_is_no_interrupted_one(tmp_path):
    [one] = plans(tmp_path, "adaptive")
    write_run(one)
    with pytest.raises(InputError, match=r"train\.num_steps was 6 and is now 9"):
        run_missing(plan_runs(choose_arms("adaptive"), 1, tmp_path, CONFIG, [], 9), tmp_path)
    assert one.directory.is_dir()


def test_a_key_that_came_later_spoils_a_run_but_not_a_page(tmp_path):
    made = plans(tmp_path)
    for one in made:
        write_run(one)
    old = made[0].directory / "config.yaml"
    old.write_text(old.read_text().replace("  gate_slope: 5.0\n", ""))
    with pytest.raises(InputError, match=r"mix_ratio\.gate_slope was not set"):
        run_missing(made, tmp_path)
    ablate(tmp_path, "--write")
    assert "could not be compared with today's: `mix_ratio.gate_slope`" in (tmp_path / "comparison.md").read_text()


# ---- running what is missing

CHILD = """
    import os, signal, sys, time
    from pathlib import Path

    here = Path.cwd()
    with Path("started").open("a") as file:
        file.write(" ".join(sys.argv[1:]) + chr(10))
    mode = os.environ.get("RUN", "")
    print("working")
    if mode.startswith("fail") and f"run.name={mode.partition(' ')[2]}" in sys.argv:
        print("duet: rollout.num_workers: 0 is too small; at least 1")
        sys.exit(2)
    if mode == "wait":
        asked = []
        signal.signal(signal.SIGINT, lambda *_: asked.append("SIGINT"))
        Path("ready").touch()
        deadline = time.monotonic() + 30
        while not asked and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        Path("asked").write_text(" ".join([*asked, "of its own group"] if os.getpgrp() == os.getpid() else asked))
        sys.exit(0)
    del sys.modules["duet"]
    sys.path[:] = [ROOT, *(place for place in sys.path if place not in ("", str(here)))]
    from evaluation.ablation.arms import ARMS, RunPlan
    from configs.load import load_config
    from tests.evaluation.ablation.ablations import write_run

    keys = dict(word.split("=", 1) for word in sys.argv[4:])
    arm, _, seed = keys["run.name"].rpartition("-")
    arguments = tuple(sys.argv[2:])
    directory = Path(keys["run.directory"]) / keys["run.name"]
    config = load_config(Path(sys.argv[3]), list(arguments[2:]))
    write_run(RunPlan(arm=ARMS[arm], seed=int(seed), directory=directory, arguments=arguments, config=config))
"""


@pytest.fixture
def interruptible():
    """Restore SIGINT, which a shell sets to ignored for background tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def started(tmp_path, monkeypatch, root):
    """Enter a directory in which `python -m duet` writes a run at once. Return a function for the started names."""
    package = tmp_path / "elsewhere" / "duet"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(textwrap.dedent(CHILD).replace("ROOT", repr(str(root))))
    monkeypatch.chdir(package.parent)

    def names() -> list[str]:
        path = package.parent / "started"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            word.removeprefix("run.name=") for line in lines for word in line.split() if word.startswith("run.name")
        ]

    return names


def test_what_is_there_is_not_run_again(tmp_path, started, capsys):
    directory = tmp_path / "runs"
    made = plans(directory)
    write_run(made[0])
    ablate(directory, "--arms", "fixed_text,adaptive", "--seeds", "1")
    assert started() == ["adaptive-0"]
    shown = capsys.readouterr().out.splitlines()
    assert "1/2  fixed_text-0: already finished (2.0 min)" in shown
    assert any(line.startswith("2/2  adaptive-0: running, about 2 min left") for line in shown)
    assert any(line.startswith("2/2  adaptive-0: done in ") for line in shown)
    assert "working" in made[1].log.read_text()
    assert "`adaptive` > `fixed_text`" in (directory / "comparison.md").read_text()
    run_missing(made, directory)  # the settings that a child run wrote match its plan
    assert started() == ["adaptive-0"]


def test_an_interrupted_run_is_moved_aside_and_run_again(tmp_path, started, capsys):
    directory = tmp_path / "runs"
    first, second = plans(directory)
    write_run(first, iterations=4)  # stopped gracefully: has a summary, with fewer iterations
    write_run(second)
    (second.directory / "summary.json").unlink()
    run_missing([first, second], directory)
    assert started() == [first.name, second.name]
    shown = capsys.readouterr().out
    for one in (first, second):
        aside = directory / f"{one.name}.interrupted-1"
        assert (aside / "config.yaml").is_file()
        assert f"{one.directory} was interrupted: moved to {aside}" in shown
        assert json.loads((one.directory / "summary.json").read_text())["iterations"] == 6


def test_a_failing_run_stops_the_comparison_and_keeps_the_finished(tmp_path, started, monkeypatch):
    directory = tmp_path / "runs"
    made = plans(directory, "fixed_text,adaptive,alpo")
    monkeypatch.setenv("RUN", "fail adaptive-0")
    with pytest.raises(RunFailed) as caught:
        run_missing(made, directory)
    for words in ("adaptive-0 ended with exit code 2", "rollout.num_workers: 0 is too small", str(made[1].log)):
        assert words in str(caught.value)
    assert started() == ["fixed_text-0", "adaptive-0"]
    monkeypatch.delenv("RUN")
    run_missing(made, directory)
    assert started() == ["fixed_text-0", "adaptive-0", "adaptive-0", "alpo-0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_passed_on_once(tmp_path, started, monkeypatch, number):
    monkeypatch.setenv("RUN", "wait")
    here = Path.cwd()

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not (here / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_missing(plans(tmp_path / "runs", "adaptive,alpo"), tmp_path / "runs")
    thread.join()
    # A terminal sends Ctrl-C to the whole process group. A run in its own group gets it only from the parent.
    assert (here / "asked").read_text() == "SIGINT of its own group"
    assert started() == ["adaptive-0"]


@pytest.mark.usefixtures("interruptible")
def test_two_comparisons_do_not_share_a_directory(tmp_path, started, monkeypatch):
    directory = tmp_path / "runs"
    made = plans(directory, "adaptive")
    monkeypatch.setenv("RUN", "wait")
    refused = []

    def second() -> None:
        while not Path("ready").exists():
            time.sleep(0.02)
        try:
            run_missing(made, directory)
        except InputError as error:
            refused.append(str(error))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=second)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_missing(made, directory)
    thread.join()
    assert len(refused) == 1
    assert "another comparison" in refused[0]


def test_the_interpreter_of_the_comparison_runs_the_runs(tmp_path, started):
    directory = tmp_path / "runs"
    [one] = plans(directory, "adaptive")
    run_missing([one], directory)
    assert one.log.read_text().startswith(f"$ {sys.executable} -m duet train --config ")
