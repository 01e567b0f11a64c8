"""The arms side by side: what is run and what is not, how sure the numbers are, and what the page says of them."""

import argparse
import copy
import json
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from controller.compare import command
from controller.compare.arms import ARMS, Plan, choose, plan
from controller.compare.bootstrap import Bootstrap, on_front
from controller.compare.measures import evaluate
from controller.compare.results import Comparison, Result
from controller.compare.running import run_missing
from controller.compare.verdicts import NOT_REPRODUCED, REPRODUCED, UNDECIDED, judge, paper_front, verdict
from controller.reading import read
from controller.train import RunFailed
from speech.errors import InputError

CONFIG = command.DEFAULTS["config"]
PROMPTS = 120
NUMBERS = pa.map_(pa.string(), pa.float32())
ROWS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("scores", NUMBERS),
        ("missing", pa.map_(pa.string(), pa.string())),
        ("failed_raters", pa.list_(pa.string())),
    ]
)
QUALITY = {
    "anchor_only": (0.40, 4.2),
    "fixed_full": (0.60, 3.6),
    "fixed_text": (0.70, 3.9),
    "fixed_text_03": (0.55, 4.1),
    "adaptive_full": (0.65, 3.7),
    "adaptive_raw": (0.80, 4.2),
    "adaptive": (0.80, 4.2),
    "two_stage": (0.75, 3.0),
    "dpo_full": (0.70, 2.0),
    "dpo_text": (0.75, 2.6),
    "alpo": (0.70, 4.0),
    "adaptive_both": (0.78, 3.8),
}
"""Share of right answers and mean of the voice that the runs of a test have: the paper's order for most claims."""


# ---- runs that nobody trained


def replies(share: float, voice: float, seed: int, name: str) -> list[dict]:
    """Of one evaluation. What makes a prompt hard is the same for every arm; a little chance is not."""
    shared = np.random.default_rng(5)
    hard, mood = shared.random(PROMPTS), shared.normal(0, 0.6, PROMPTS)
    own = np.random.default_rng([seed, *name.encode()])
    right = hard + own.normal(0, 0.02, PROMPTS) < share
    manner = np.clip(voice + mood + own.normal(0, 0.05, PROMPTS), 1.0, 5.0)
    return [
        row(
            f"p{i}", answer=5.0 if right[i] else 1.0, heard=5.0, manner=manner[i], spoken_right=5.0 if right[i] else 1.0
        )
        for i in range(PROMPTS)
    ]


def row(prompt: str, *, missing: dict[str, str] | None = None, failed: tuple[str, ...] = (), **scores: float) -> dict:
    if "heard" in scores and "manner" in scores:
        scores["acoustic"] = (scores["heard"] + scores["manner"]) / 2
    return {"prompt_id": prompt, "scores": scores, "missing": missing or {}, "failed_raters": list(failed)}


def write_run(one: Plan, iterations: int | None = None, after: list[dict] | None = None, **summary: object) -> None:
    """The files of a run as `duet train` leaves them, as far as a comparison reads them."""
    config = copy.deepcopy(one.config)
    config.run.directory = str(one.directory.parent.absolute())
    config.data.prompts = str(Path(config.data.prompts).absolute())
    config.data.held_out = {name: str(Path(path).absolute()) for name, path in config.data.held_out.items()}
    one.directory.mkdir(parents=True)
    (one.directory / "config.yaml").write_text(config.yaml())
    done = iterations or config.run.iterations
    mix = [0.1 + 0.01 * number for number in range(done)]
    mix[-1] = 0.05
    table = {"lambda": mix, "replies": [64] * done, "replies_truncated": [1] * done}
    pq.write_table(pa.table(table), one.directory / "iterations.parquet")
    for name in config.data.held_out:
        sets = {
            "before": replies(0.4, 4.2, 0, name),
            "after": after or replies(*QUALITY[one.arm.name], one.seed, one.arm.name + name),
        }
        for when, rows in sets.items():
            path = one.directory / "evaluations" / when / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            maps = [{**r, "scores": list(r["scores"].items()), "missing": list(r["missing"].items())} for r in rows]
            np.random.default_rng(len(name)).shuffle(maps)
            pq.write_table(pa.Table.from_pylist(maps, schema=ROWS), path)
    content = {
        "iterations": done,
        "seconds": {"total": 120.0},
        "logp_gap_largest": 1e-5 * (one.seed + 1),
        "probe_gap_largest": 2e-6,
        "raters": {"answer": "a-1"},
        "versions": {"torch": "9.9"},
    }
    (one.directory / "summary.json").write_text(json.dumps(content | summary))


def plans(directory: Path, arms: str = "fixed_text,adaptive", seeds: int = 1, *overrides: str) -> list[Plan]:
    return plan(choose(arms), seeds, directory, CONFIG, overrides, 6)


def options(directory: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--directory", str(directory), "--iterations", "6", *arguments])


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """All arms with two seeds."""
    directory = tmp_path_factory.mktemp("compare")
    for one in plans(directory, "", 2):
        write_run(one)
    return directory


@pytest.fixture(scope="module")
def comparison(everything) -> Comparison:
    return Comparison([Result.read(one) for one in plans(everything, "", 2)])


# ---- arms and their runs


def test_a_stopped_comparison_has_whole_seeds(tmp_path):
    made = plans(tmp_path, "adaptive,two_stage", 2, "rollout.prompts=8")
    assert [one.name for one in made] == ["adaptive-0", "two_stage-0", "adaptive-1", "two_stage-1"]
    assert made[1].config.mix.switch == 3  # half of the iterations
    assert made[1].arguments[-1] == "rollout.prompts=8"
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
        ("", "mix.smoothing=0.5", "the arm adaptive_raw sets it"),
        ("", "mix={mode: fixed}", "the arm"),
        ("adaptive", "run.seed=3", "a comparison sets it itself"),
        ("adaptive", "run.iterations=3", "--iterations says it already"),
    ],
)
def test_what_the_arms_differ_in_is_not_overridden(tmp_path, arms, override, reason):
    with pytest.raises(InputError, match=reason):
        plans(tmp_path, arms, 1, override)


def test_an_unknown_arm_is_named():
    with pytest.raises(InputError, match="no arm 'adaptiv'; arms: anchor_only"):
        choose("adaptive,adaptiv")


# ---- how sure the numbers are


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator, bootstrap = np.random.default_rng(1), Bootstrap(80, 1000)
    experiments, seeds = 300, 3
    covered = independent = 0
    for _ in range(experiments):
        # Seeds share their prompts: three seeds are no three times as many prompts.
        values = generator.normal(2.0, 1.0, 80) + generator.normal(0, 0.2, (seeds, 80))
        estimate = bootstrap.estimate(values)
        covered += estimate.low <= 2.0 <= estimate.high
        width = 1.96 * values.std() / np.sqrt(values.size)
        independent += abs(values.mean() - 2.0) <= width
    assert 0.91 <= covered / experiments <= 0.98
    assert independent / experiments < 0.85  # as it would be, were prompts of several seeds taken for different ones


def test_pairing_takes_out_what_makes_prompts_hard():
    generator, bootstrap = np.random.default_rng(2), Bootstrap(200, 2000)
    hard = generator.normal(0, 1, 200)
    one, other = (hard + shift + generator.normal(0, 0.1, (2, 200)) for shift in (0.1, 0.0))
    paired = bootstrap.estimate(one - other)
    apart = bootstrap.estimate(one - generator.permuted(other, axis=1))
    assert paired.low > 0
    assert apart.low < 0 < apart.high
    assert (apart.high - apart.low) > 4 * (paired.high - paired.low)
    # The same prompts are drawn for both arms: the difference of the resamples is the resampled difference.
    samples = bootstrap.estimate(one).samples - bootstrap.estimate(other).samples
    np.testing.assert_allclose(samples, paired.samples, atol=1e-5)


def test_a_prompt_that_is_left_out_takes_no_part():
    bootstrap = Bootstrap(50, 500)
    values = np.random.default_rng(3).normal(size=(1, 50))
    holes = values.copy()
    holes[0, 30:] = np.nan
    estimate = bootstrap.estimate(holes)
    assert estimate.value == pytest.approx(values[0, :30].mean())
    means = [np.average(values[0, :30], weights=counts[:30]) for counts in bootstrap.counts[:20]]
    np.testing.assert_allclose(estimate.samples[:20], means, atol=1e-5)
    assert bootstrap.estimate(np.full((2, 50), np.nan)) is None
    assert bootstrap.estimate(np.stack([holes[0], np.full(50, np.nan)])).by_seed == (estimate.value,)


def test_the_front_is_what_nobody_beats():
    points = np.array([[1.0, 3.0], [2.0, 2.0], [1.5, 1.5], [2.0, 2.0], [0.5, 3.0]])
    assert on_front(points).tolist() == [True, True, False, True, False]
    assert on_front(np.stack([points, points[::-1]]))[1].tolist() == [False, True, False, True, True]


# ---- replies without a score


def test_a_broken_voice_does_not_hide_by_dropping_out():
    config = read(CONFIG, [])
    rows = [
        row("good", answer=5.0, heard=5.0, manner=4.0, spoken_right=5.0),
        row("mute", answer=5.0, missing=dict.fromkeys(("heard", "manner", "spoken_right"), "no speech")),
        row("judge away", answer=1.0, heard=5.0, spoken_right=5.0, missing={"manner": "time-out"}, failed=("manner",)),
    ]
    measured = evaluate(tuple(r["prompt_id"] for r in rows), rows, config)
    expected = {
        "iq": [100, 100, 0],
        "eq": [4.5, 1, np.nan],
        "spoken_right": [100, 0, 100],
        "heard": [100, 0, 100],
        "manner": [4, 1, np.nan],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(measured.values[name], values)
    assert (measured.unratable, measured.unrated) == (1, 1)


def test_a_voice_that_is_gone_has_the_lowest_score_and_not_none():
    silence = dict.fromkeys(("heard", "manner"), "no speech")
    measured = evaluate(("a", "b"), [row(name, answer=5.0, missing=silence) for name in "ab"], read(CONFIG, []))
    assert measured.mean("eq") == 1.0
    assert measured.mean("spoken_right") is None  # nobody was asked


# ---- verdicts


@pytest.mark.parametrize(
    ("direction", "low", "high", "expected"),
    [
        ("higher", 0.1, 0.3, REPRODUCED),
        ("higher", -0.3, -0.1, NOT_REPRODUCED),
        ("lower", -0.3, -0.1, REPRODUCED),
        ("lower", 0.1, 0.3, NOT_REPRODUCED),
        ("lower", -0.1, 0.3, UNDECIDED),
        ("higher", 0.0, 0.3, UNDECIDED),
        ("open", 0.1, 0.3, "higher"),
        ("open", -0.1, 0.3, UNDECIDED),
    ],
)
def test_the_interval_decides(direction, low, high, expected):
    assert verdict(direction, low, high) == expected


def test_claims_are_judged_by_what_was_measured(comparison):
    found = {(j.claim.arm, j.claim.other, j.claim.measure): j for j in judge(comparison)}
    expected = {
        ("fixed_full", "fixed_text", "eq"): REPRODUCED,
        ("adaptive_full", "adaptive", "eq"): REPRODUCED,
        ("fixed_text_03", "fixed_text", "iq"): REPRODUCED,
        ("dpo_full", None, "eq"): REPRODUCED,
        ("alpo", "adaptive", "iq"): NOT_REPRODUCED,
        ("adaptive", "adaptive_raw", "iq"): UNDECIDED,
    }
    assert {key: found[key].verdict for key in expected} == expected
    one = found["fixed_full", "fixed_text", "eq"]
    assert one.difference.value == pytest.approx(one.ours[0] - one.ours[1])
    assert one.difference.value == pytest.approx((3.6 - 3.9) / 2, abs=0.03)
    assert len(one.difference.by_seed) == 2
    assert one.minutes == pytest.approx(8.0)  # two arms, two seeds, two minutes each
    collapse = found["dpo_full", None, "eq"]
    assert collapse.difference.value == pytest.approx(collapse.ours[0] - collapse.ours[1])


def test_the_front_of_the_papers_arms(comparison):
    front = paper_front(comparison)
    on, share = (dict(zip(front.arms, values, strict=True)) for values in (front.on, front.share))
    assert set(on) == {name for name, arm in ARMS.items() if arm.in_table}
    assert not on["fixed_full"]
    assert share["fixed_full"] == 0.0
    assert front.verdict("fixed_full") == NOT_REPRODUCED
    assert on["adaptive"] or on["adaptive_raw"]
    assert share["adaptive"] + share["adaptive_raw"] >= 1.0


def test_arms_are_compared_over_the_seeds_that_both_have(everything, comparison):
    some = [Result.read(one) for one in plans(everything, "fixed_text,adaptive", 2) if one.name != "fixed_text-1"]
    part = Comparison(some)
    assert part.seeds("fixed_text", "adaptive") == (0,)
    difference = part.difference("held_out", "iq", "adaptive", "fixed_text")
    assert difference.by_seed == comparison.difference("held_out", "iq", "adaptive", "fixed_text").by_seed[:1]


# ---- the page and its files


def test_the_page_shows_what_is_there(everything, tmp_path, capsys):
    page = tmp_path / "docs" / "results.md"
    command.run(options(everything, "--write", "--seeds", "2", "--page", str(page)))
    text = page.read_text()
    assert str(page) in capsys.readouterr().out
    for title in ("## Settings", "## Arms", "## What the paper found", "## Pareto front", "held_out_facts", "## Runs"):
        assert title in text
    assert f"duet compare --seeds 2 --iterations 6 --directory {everything} --page {page}" in text
    for arm in ARMS:
        assert f"**{arm}**" in text
        assert text.count(f"run.name={arm}-") == 2
    claim = next(line for line in text.splitlines() if "`fixed_full` < `fixed_text`" in line)
    assert "2.48 against 2.60 (VITA-Audio)" in claim
    assert "**reproduced**" in claim
    training = next(line for line in text.splitlines() if line.startswith("| adaptive |") and "of" in line)
    assert "| 0.100 | 0.140 | 0.050 | 12 of 768 | 2.0 |" in training
    assert "24 runs, 48 minutes in all" in text
    assert "2.0e-05 on sampled tokens, 2.0e-06 on the probe" in text
    assert f"![IQ and EQ of the arms]({page.with_suffix('.png').name})" in text
    for picture in (page.with_suffix(".png"), everything / "comparison.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 30_000
    assert "nan" not in text.lower()


def test_the_table_has_arms_and_runs(everything, comparison):
    command.run(options(everything, "--write", "--seeds", "2"))
    rows = pq.read_table(everything / "comparison.parquet").to_pylist()
    assert len(rows) == 2 * len(ARMS) * 3  # sets; an arm and its two runs
    own = [r for r in rows if r["arm"] == "adaptive" and r["set"] == "held_out"]
    assert [r["seed"] for r in own] == [None, 0, 1]
    arm, *runs = own
    assert arm["iq"] == pytest.approx(np.mean([r["iq"] for r in runs]))
    assert arm["iq_low"] < arm["iq"] < arm["iq_high"]
    assert arm["eq_change"] == pytest.approx(comparison.change("held_out", "eq", "adaptive").value)
    assert arm["iq_spread"] == pytest.approx(np.std([r["iq"] for r in runs], ddof=1))
    assert runs[0]["iq_spread"] is None
    assert (arm["minutes"], runs[1]["minutes"], arm["truncated"]) == (4.0, 2.0, 12)
    assert "run.name=adaptive-1" in runs[1]["command"]
    assert (everything / "comparison.md").is_file()


def test_only_claims_whose_arms_are_there(tmp_path):
    for one in plans(tmp_path, "adaptive,anchor_only"):
        write_run(one)
    command.run(options(tmp_path, "--write", "--seeds", "1"))
    text = (tmp_path / "comparison.md").read_text()
    assert "`adaptive` is on the Pareto front among `adaptive`" in text
    for absent in ("fixed_text", "dpo", "alpo"):
        assert absent not in text


def test_replies_without_a_score_are_counted_in_the_table(tmp_path):
    [one] = plans(tmp_path, "adaptive")
    after = replies(0.8, 4.0, 0, "x")
    for place in range(3):
        after[place] = row(f"p{place}", missing=dict.fromkeys(("answer", "heard", "manner"), "truncated reply"))
    after[3] = row("p3", answer=5.0, missing={"heard": "time-out"}, failed=("heard",))
    write_run(one, after=after)
    command.run(options(tmp_path, "--write", "--seeds", "1"))
    line = next(x for x in (tmp_path / "comparison.md").read_text().splitlines() if "**adaptive**" in x)
    # p3: of manner and of what is heard right there is neither a number nor a failure.
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["4", "1"]


def test_runs_that_were_rated_differently_are_not_compared(tmp_path):
    first, second = plans(tmp_path)
    write_run(first)
    write_run(second, raters={"answer": "a-2"})
    with pytest.raises(InputError, match="scores of different raters cannot be compared"):
        command.run(options(tmp_path, "--write"))


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        command.run(options(tmp_path, "--write"))


# ---- mixed settings


def test_mixed_settings_are_refused(tmp_path):
    for one in plans(tmp_path, "fixed_text,adaptive", 1, "learner.learning_rate=1e-5"):
        write_run(one)
    with pytest.raises(InputError, match=r"fixed_text-0 was run with other settings: learner.learning_rate is 1e-05"):
        run_missing(plans(tmp_path), tmp_path)
    with pytest.raises(InputError, match="other settings"):
        command.run(options(tmp_path, "--write", "--arms", "adaptive"))


def test_a_run_of_another_length_is_no_interrupted_one(tmp_path):
    [one] = plans(tmp_path, "adaptive")
    write_run(one)
    with pytest.raises(InputError, match=r"run\.iterations is 6 there and 9 now"):
        run_missing(plan(choose("adaptive"), 1, tmp_path, CONFIG, [], 9), tmp_path)
    assert one.directory.is_dir()


def test_a_key_that_came_later_spoils_a_run_but_not_a_page(tmp_path):
    made = plans(tmp_path)
    for one in made:
        write_run(one)
    old = made[0].directory / "config.yaml"
    old.write_text(old.read_text().replace("  slope: 5.0\n", ""))
    with pytest.raises(InputError, match=r"mix\.slope is not there"):
        run_missing(made, tmp_path)
    command.run(options(tmp_path, "--write"))
    assert "could not be compared with today's: `mix.slope`" in (tmp_path / "comparison.md").read_text()


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
        print("duet: rollout.workers: 0 is too small; at least 1")
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
    del sys.modules["controller"]
    sys.path[:] = [ROOT, *(place for place in sys.path if place not in ("", str(here)))]
    from controller.compare.arms import ARMS, Plan
    from controller.reading import read
    from tests.controller.test_compare import write_run

    keys = dict(word.split("=", 1) for word in sys.argv[4:])
    arm, _, seed = keys["run.name"].rpartition("-")
    arguments = tuple(sys.argv[2:])
    directory = Path(keys["run.directory"]) / keys["run.name"]
    config = read(Path(sys.argv[3]), list(arguments[2:]))
    write_run(Plan(arm=ARMS[arm], seed=int(seed), directory=directory, arguments=arguments, config=config))
"""


@pytest.fixture
def started(tmp_path, monkeypatch, root):
    """In a working directory where `python -m controller` writes a run at once. Gives the names of those started."""
    package = tmp_path / "elsewhere" / "controller"
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
    command.run(options(directory, "--arms", "fixed_text,adaptive", "--seeds", "1"))
    assert started() == ["adaptive-0"]
    shown = capsys.readouterr().out.splitlines()
    assert "1/2  fixed_text-0: there already (2.0 min)" in shown
    assert any(line.startswith("2/2  adaptive-0: running, about 2 min left") for line in shown)
    assert any(line.startswith("2/2  adaptive-0: done in ") for line in shown)
    assert "working" in made[1].log.read_text()
    assert "`adaptive` > `fixed_text`" in (directory / "comparison.md").read_text()
    run_missing(made, directory)  # and what a run of its own wrote is taken for what would be run
    assert started() == ["adaptive-0"]


def test_an_interrupted_run_is_moved_aside_and_run_again(tmp_path, started, capsys):
    directory = tmp_path / "runs"
    first, second = plans(directory)
    write_run(first, iterations=4)  # stopped in order: with a summary, but of fewer iterations
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
    for words in ("adaptive-0 ended with exit code 2", "rollout.workers: 0 is too small", str(made[1].log)):
        assert words in str(caught.value)
    assert started() == ["fixed_text-0", "adaptive-0"]
    monkeypatch.delenv("RUN")
    run_missing(made, directory)
    assert started() == ["fixed_text-0", "adaptive-0", "adaptive-0", "alpo-0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
    # A terminal sends Ctrl-C to the whole group of processes; a run of its own group gets it from here only.
    assert (here / "asked").read_text() == "SIGINT of its own group"
    assert started() == ["adaptive-0"]


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
    assert one.log.read_text().startswith(f"$ {sys.executable} -m controller train --config ")
