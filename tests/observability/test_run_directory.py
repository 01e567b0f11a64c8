"""The files of a run: whole, readable at any moment, and without invented numbers."""

import json
import threading

import numpy as np
import pyarrow as pa
import pytest

from common.errors import InputError
from configs.routes import ScoreRoute
from observability.reply_schema import ReplyProvenance, ReplyRecord
from observability.run_directory import (
    RunDirectory,
    _write_table,
    read_evaluation,
    read_events,
    read_iterations,
    read_replies,
    read_summary,
)
from reward.scoring import ScoredReply, ScoringConfig, score_groups
from reward.types import MissingScore, Scorecard
from speech.types import ReplyOrigin
from tests.controller.examples import card, group, iteration, reply


@pytest.fixture
def records(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "run: {}\n")


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
        RunDirectory.create(records.directory, "run: {}\n")


MADE = ReplyProvenance(raters={"answer": "v1", "heard": "v2"}, sampling={"temperature": "1", "structure": "on"})


def judged(*cards: Scorecard) -> list[ScoredReply]:
    scoring = ScoringConfig(total={"answer": 1.0}, others={"acoustic": {"heard": 1.0}})
    return score_groups(
        group(len(cards), ids=(7, 8, 3), channels=(0, 1, 3)), cards, scoring, [ScoreRoute(), ScoreRoute(score="heard")]
    )


def test_replies_keep_missing_apart_from_numbers(records):
    """Method §7, rule 1 and rule 9: what is missing, why, through whose fault, and what made each score."""
    gone, failed = MissingScore("no speech"), MissingScore("answer raised TimeoutError", fault="rater")
    replies = judged(card(answer=5.0, heard=gone), card(answer=failed, heard=1.0), card(answer=1.0, heard=5.0))
    rows = [ReplyRecord(judged=j, routes=["total→text", "heard→text"], use=None) for j in replies]
    records.add_replies(1, rows, MADE)
    first, second, third = read_replies(records.directory, 1).to_pylist()
    assert dict(first["scores"]) == {"answer": 5.0}
    assert dict(first["missing"]) == {"heard": "no speech"}
    assert (first["failed_raters"], second["failed_raters"]) == ([], ["answer"])
    assert dict(first["rater_versions"]) == {"answer": "v1", "heard": "v2"}
    assert dict(first["sampling"]) == {"temperature": "1", "structure": "on"}
    assert (first["token_ids"], first["weight_version"], first["seed"]) == ([7, 8, 3], 4, 9)
    assert (first["worker"], first["prompt_id"], first["text"]) == ("rollout-0", "p", "oh ten it is")
    assert (first["total"], second["total"]) == (5.0, None)
    assert dict(first["advantages"]) == {"total→text": pytest.approx(1.0, abs=1e-3)}
    assert dict(third["advantages"]).keys() == {"total→text", "heard→text"}
    assert dict(third["scores"])["acoustic"] == 5.0


def test_nothing_is_said_of_what_was_not_done_here(records):
    """Method §7, rule 9: replies from a file were neither sampled nor rated by the run, demonstrations only rated."""
    scoring, asked = ScoringConfig(total={"answer": 1.0}), group(2)
    for index, worker in enumerate((ReplyOrigin.RECORDED, ReplyOrigin.DEMONSTRATION)):
        asked.replies[index] = reply(index, worker=worker, weight_version=-1)
    rows = [
        ReplyRecord(judged=j, routes=[], use=None)
        for j in score_groups(asked, [card(answer=5.0), card(answer=1.0)], scoring, [])
    ]
    records.add_replies(1, rows, MADE)
    recorded, demonstration = read_replies(records.directory, 1).to_pylist()
    for row in (recorded, demonstration):
        assert (row["sampling"], row["seed"], row["weight_version"]) == ([], None, -1)
    assert (recorded["rater_versions"], recorded["seconds_audio"]) == ([], None)
    assert dict(demonstration["rater_versions"]) == {"answer": "v1", "heard": "v2"}


def test_evaluations_are_kept_reply_by_reply(records):
    rows = [ReplyRecord(judged=j, routes=["a", "b"], use=None) for j in judged(card(answer=5.0, heard=1.0))]
    records.add_evaluation("before", "held_out", 0, rows, MADE)
    assert read_evaluation(records.directory, "before", "held_out")["total"].to_pylist() == [5.0]
    with pytest.raises(InputError, match="after/held_out"):
        read_evaluation(records.directory, "after", "held_out")


def test_the_demonstrations_of_an_iteration_are_on_record(records):
    """Method §7, rule 9."""
    records.add_iteration(iteration(1, demonstrations=["train-00007", "train-00002"]))
    records.add_iteration(iteration(2, demonstrations=[]))
    column = read_iterations(records.directory)["demonstrations"].to_pylist()
    assert column == [["train-00007", "train-00002"], []]


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
    RunDirectory.open(records.directory).add_event("resumed")
    assert [event["kind"] for event in read_events(records.directory)] == ["started", "resumed"]


def test_rewinding_drops_what_will_be_done_again(records):
    for number in (1, 2, 3):
        records.add_iteration(iteration(number))
        records.add_replies(number, [], MADE)
    again = RunDirectory.open(records.directory, through=1)
    assert again.last == 1
    assert not (records.directory / "replies/000002.parquet").exists()
    again.add_iteration(iteration(2))
    with pytest.raises(InputError, match="before iteration 9"):
        RunDirectory.open(records.directory, through=9)


def test_a_table_can_be_read_while_a_running_job_replaces_it(tmp_path):
    path, ended, failures = tmp_path / "iterations.parquet", threading.Event(), []

    def replace() -> None:
        rows = 1
        while not ended.is_set():
            rows = rows % 400 + 1
            _write_table(path, pa.table({f"c{i}": list(range(rows)) for i in range(30)}))

    _write_table(path, pa.table({"c0": [0]}))
    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(200):
            read_iterations(tmp_path)
    except InputError as error:
        failures.append(error)
    finally:
        ended.set()
        writer.join(timeout=20)
    assert failures == []
