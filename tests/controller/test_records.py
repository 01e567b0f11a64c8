"""The files of a run: whole, readable at any moment, and without invented numbers."""

import json

import numpy as np
import pytest

from controller.records import Records, ScoredReply, read_events, read_iterations, read_replies, read_summary
from reward.rater import Missing, Scorecard
from speech.errors import InputError
from speech.records import Finish, Reply
from tests.controller.examples import iteration


@pytest.fixture
def records(tmp_path) -> Records:
    return Records.create(tmp_path / "run", "run: {}\n")


def test_rows_add_up_under_the_names_of_the_contract(records):
    for number in (1, 2, 3):
        records.add_iteration(iteration(number))
        assert read_iterations(records.directory).num_rows == number
    row = read_iterations(records.directory).to_pylist()[2]
    assert row["lambda"] == pytest.approx(0.23)
    assert row["score_answer"] == pytest.approx(2.3)
    assert row["score_manner"] is None
    assert row["seconds_total"] == pytest.approx(3.6)
    assert row["scores_missing"] == 2


def test_what_is_not_finite_is_null(records):
    records.add_iteration(iteration(1, kl_text=float("nan")))
    assert read_iterations(records.directory)["kl_text"].to_pylist() == [None]
    records.write_summary({"a": float("inf"), "b": np.float32(0.5), "c": {"d": np.nan}})
    assert read_summary(records.directory) == {"a": None, "b": 0.5, "c": {"d": None}}


def test_iterations_are_neither_skipped_nor_repeated(records):
    records.add_iteration(iteration(1))
    for number in (1, 3):
        with pytest.raises(ValueError, match=f"iteration {number} cannot follow iteration 1"):
            records.add_iteration(iteration(number))


def test_a_directory_holds_one_run(records):
    with pytest.raises(InputError, match="already holds a run"):
        Records.create(records.directory, "run: {}\n")


def test_replies_keep_missing_apart_from_numbers(records):
    reply = Reply(
        prompt_id="p",
        index=1,
        token_ids=np.array([7, 8, 3], dtype=np.int32),
        channels=np.array([0, 1, 0], dtype=np.int8),
        logps=np.array([-1.0, -0.5, 0.0], dtype=np.float32),
        weight_version=4,
        finish=Finish.STOP,
        defect=None,
        worker="rollout-0",
        seed=9,
    )
    card = Scorecard(scores={"answer": 5.0, "heard": Missing("no speech")}, details={"heard": ""}, seconds=0.4)
    row = ScoredReply(reply=reply, text="one", scorecard=card, total=None, advantage=None)
    records.add_replies(1, [row], {"answer": "v1", "heard": "v2"})
    [read] = read_replies(records.directory, 1).to_pylist()
    assert dict(read["scores"]) == {"answer": 5.0}
    assert dict(read["missing"]) == {"heard": "no speech"}
    assert dict(read["rater_versions"]) == {"answer": "v1", "heard": "v2"}
    assert (read["token_ids"], read["weight_version"], read["seed"]) == ([7, 8, 3], 4, 9)
    assert read["total"] is None
    assert read["advantage"] is None


def test_events_are_lines_of_json(records):
    records.add_event("started", workers=2)
    records.add_event("failed", error="λ")
    assert [event["kind"] for event in read_events(records.directory)] == ["started", "failed"]
    lines = (records.directory / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["error"] == "λ"


def test_half_a_line_left_by_a_crash_spoils_no_other_event(records):
    records.add_event("started")
    with (records.directory / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-')
    assert [event["kind"] for event in read_events(records.directory)] == ["started"]
    Records.open(records.directory).add_event("resumed")
    assert [event["kind"] for event in read_events(records.directory)] == ["started", "resumed"]


def test_rewinding_drops_what_will_be_done_again(records):
    for number in (1, 2, 3):
        records.add_iteration(iteration(number))
        records.add_replies(number, [], {})
    again = Records.open(records.directory, through=1)
    assert again.last == 1
    assert not (records.directory / "replies/000002.parquet").exists()
    again.add_iteration(iteration(2))
    with pytest.raises(InputError, match="before iteration 9"):
        Records.open(records.directory, through=9)
