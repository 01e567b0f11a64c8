"""What a report says of a run's state and course, from records of every kind."""

import pytest

from configs.load import load_config
from observability.report import overview
from observability.run_directory import RunDirectory, read_iterations
from reward.scoring import ScoringConfig, score_groups
from reward.types import MissingScore
from tests.conftest import ROOT
from tests.controller.examples import card, group, iteration

PLAYGROUND = load_config(ROOT / "configs/playground.yaml", [])

EVENTS = [{"time": "2026-01-01T00:00:00.000Z", "kind": "started"}]


@pytest.mark.parametrize(
    ("summary", "more", "worked_on", "done", "word"),
    [
        ({}, [{"kind": "finished"}], True, 9, "finished"),
        ({}, [{"kind": "stop_requested"}], False, 4, "stopped"),
        (None, [], True, 4, "running"),
        (None, [{"kind": "failed", "error": "no space"}], False, 4, "failed"),
        (None, [{"kind": "failed"}, {"kind": "resumed"}], False, 4, "interrupted"),
        (None, [{"kind": "actor_died", "member": "rollout-0", "reason": "died"}], False, 4, "interrupted"),
    ],
)
def test_how_a_run_stands(summary, more, worked_on, done, word):
    found = overview.state(summary, EVENTS + more, worked_on=worked_on, done=done, planned=9)
    assert found["word"] == word


def test_a_run_that_nobody_began():
    assert overview.state(None, [], worked_on=False, done=0, planned=9)["word"] == "not started"


def test_a_failure_is_told():
    events = [*EVENTS, {"kind": "failed", "error": "no space", "trace": "a long story"}]
    assert overview.state(None, events, worked_on=False, done=1, planned=9)["sentence"] == "error no space"


def test_the_head_of_a_run(tmp_path):
    records = RunDirectory.create(tmp_path / "run", "run: {}\n")
    assert overview.head(PLAYGROUND, "run", None, [], None)["lambda"] is None
    for number in (1, 2):
        records.add_iteration(iteration(number))
    head = overview.head(PLAYGROUND, "run", read_iterations(records.directory), EVENTS, None)
    assert (head["iteration"], head["lambda"], head["version"]) == (2, pytest.approx(0.22), 2)
    assert head["replies"] == 128
    assert head["seconds_iterations"] == pytest.approx(7.2)
    assert head["seconds"] is None
    assert head["began"] == EVENTS[0]["time"]


def test_series_hold_a_value_an_iteration_and_none_where_nothing_was_measured(tmp_path):
    records = RunDirectory.create(tmp_path / "run", "run: {}\n")
    for number in (1, 2, 3):
        records.add_iteration(iteration(number, kl_text=float("nan") if number == 2 else 0.01 * number))
    found = overview.series(read_iterations(records.directory))
    assert found["lines"]["kl_text"] == [0.01, None, 0.03]
    assert found["scores"]["manner"] == [None] * 3
    assert found["scores"]["answer"] == pytest.approx([2.1, 2.2, 2.3])
    assert list(found["seconds"]) == ["rollout", "reward", "learn", "sync", "total"]
    assert overview.series(None) == {"lines": {}, "scores": {}, "seconds": {}}


def judged(*scores):
    return [
        score_groups(group(1, f"p{place}"), [card(answer=score)], ScoringConfig(total={"answer": 1.0}), [])[0]
        for place, score in enumerate(scores)
    ]


def test_held_out_changes_have_their_paired_interval():
    before, after = judged(1.0, 1.0, 5.0, 1.0), judged(5.0, 1.0, 5.0, 5.0)
    [found] = overview.held_out({"held_out": before}, {"held_out": after}, 5.0)
    measures = {measure["name"]: measure for measure in found["measures"]}
    share = measures["answer_accuracy"]
    assert (share["before"], share["after"], share["share"]) == (0.25, 0.75, True)
    # Changes 1, 0, 0, 1: deviation √(1/3), standard error half of it.
    assert share["margin"] == pytest.approx(1.96 * (1 / 3) ** 0.5 / 2, rel=1e-4)
    assert (measures["answer"]["before"], measures["answer"]["after"]) == (2.0, 4.0)


def test_without_an_evaluation_after_nothing_is_said_of_it():
    [found] = overview.held_out({"held_out": judged(1.0, MissingScore("truncated reply"))}, {}, 5.0)
    assert found["missing"] == [1, None]
    assert all(measure["after"] is None and measure["margin"] is None for measure in found["measures"])
    assert overview.held_out({}, {}, 5.0) == []


def test_events_are_told_newest_first_and_by_kind():
    events = [
        {"time": "1", "kind": "started", "arithmetic": {"prompts": 3}},
        {"time": "2", "kind": "actor_died", "member": "rollout-1", "reason": "died"},
        {"time": "3", "kind": "pool_resized", "pool": "rollout", "before": 1, "after": 2},
        {"time": "4", "kind": "actor_died"},
        {"time": "5", "kind": "invented", "iteration": 7, "note": "x" * 1000},
    ]
    found = overview.happenings(events)
    assert [row["group"] for row in found["rows"]] == ["other", "fault", "scale", "fault", "other"]
    assert found["rows"][3]["words"] == "rollout-1 died; its work goes to another"
    assert found["rows"][2]["words"] == "rollout: 1 → 2 members"
    assert found["rows"][0]["iteration"] == 7
    assert len(found["rows"][0]["words"]) == overview.LONGEST
    many = overview.happenings([{"time": str(n), "kind": "actor_ready", "member": "m"} for n in range(600)])
    assert (many["all"], len(many["rows"]), many["rows"][0]["time"]) == (600, overview.MOST_EVENTS, "599")
