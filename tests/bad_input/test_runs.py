"""Garbage in a run's folder: it is skipped or rejected, and valid files stay."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controller.mix_ratio import MixRatio, MixRatioConfig
from controller.requests import ControlInbox, send_request
from observability.run_directory import (
    RunDirectory,
    read_events,
    read_iterations,
    read_replies,
    read_summary,
    run_directory,
)
from tests.bad_input.door import refused
from tests.controller.examples import iteration

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def records(tmp_path) -> RunDirectory:
    found = RunDirectory.create(tmp_path / "run", "run: {}\n")
    found.add_event("started")
    return found


@given(content=st.binary(max_size=200))
@example(content=b"[1]\nnull\n3\n{}\n\xff\xfe\n")
@example(content=b'{"kind": 5}\n{"kind": null}\n[]')
@example(content=b"[" * 100_000)
def test_events_are_read_past_garbage(tmp_path_factory, content):
    run = tmp_path_factory.mktemp("run")
    records = RunDirectory.create(run, "run: {}\n")
    records.add_event("started")
    with (run / "events.jsonl").open("ab") as file:
        file.write(content)
    assert read_events(run)[0]["kind"] == "started"
    RunDirectory.open(run).add_event("finished")
    events = read_events(run)
    assert (events[0]["kind"], events[-1]["kind"]) == ("started", "finished")
    assert all(isinstance(event["kind"], str) for event in events)
    refused(run, lambda: send_request(run, "mix", 0.3, timeout_s=0.1, print_line=print), "has finished")


def ratio() -> MixRatio:
    return MixRatio(
        MixRatioConfig(
            schedule="adaptive", value=0.5, warmup_steps=0, max=0.8, gate_slope=5.0, gate_threshold=3.0, score_min=1.0,
            score_max=5.0, ema_decay=0.9, initial=None, per_group=False,
        )
    )  # fmt: skip


REQUESTS = st.binary(max_size=100) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries({"kind": st.just("mix"), "value": inner})
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode())


@given(content=REQUESTS)
@example(content=b'{"kind": "mix", "value": NaN}')
@example(content=b'{"kind": "mix", "value": "\\ud800"}')
@example(content=b'{"kind": "mix", "value": %s}' % (b"9" * 4000))
@example(content=b'{"kind": "mix", "value": [[[]]]}')
@example(content=b"[" * 60_000)
@example(content=b" " * 70_000)
def test_a_request_is_applied_or_rejected_on_record(tmp_path_factory, content):
    run = tmp_path_factory.mktemp("run")
    records = RunDirectory.create(run, "run: {}\n")
    inbox, mix = ControlInbox.open(run), ratio()
    (run / "requests/1.json").write_bytes(content)
    [request] = inbox.take()
    try:
        value = mix.apply_request(request.content)
    except ValueError as error:
        records.add_event("request_rejected", id=request.id, reason=str(error))
    else:
        assert isinstance(value, str) or 0 <= value <= 1
        records.add_event("mix", id=request.id, value=value, iteration=1)
    inbox.done(request)
    [event] = read_events(run)
    assert event["id"] == "1"
    assert list((run / "requests").iterdir()) == []


def test_invalid_requests_are_ignored(records):
    run, inbox = records.directory, ControlInbox.open(records.directory)
    folder = run / "requests"
    (folder / "1.json").mkdir()
    os.mkfifo(folder / "2.json")
    (folder / "3.json").symlink_to("/dev/zero")
    (folder / "4.json").symlink_to("nowhere")
    (folder / "5.taken").mkdir()
    (folder / os.fsdecode(b"6\xff.json")).write_text("{}")
    [request] = ControlInbox.open(run).take()
    assert request.content == {}
    records.add_event("request_rejected", id=request.id)  # a name that is no UTF-8 goes on record as it can
    inbox.done(request)
    assert [event["kind"] for event in read_events(run)] == ["started", "request_rejected"]
    assert ControlInbox.open(run).take() == []


ANSWERS = {
    "no iteration": '{"kind": "mix", "id": "%s"}',
    "an iteration of words": '{"kind": "mix", "id": "%s", "iteration": "soon"}',
    "a refusal without a reason": '{"kind": "request_rejected", "id": "%s"}',
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_are_none(records, name):
    ControlInbox.open(records.directory)

    def answer(_):
        [asked] = (records.directory / "requests").glob("*.json")
        with (records.directory / "events.jsonl").open("a") as file:
            file.write(ANSWERS[name] % asked.stem + "\n")
        asked.unlink()

    before = len(read_events(records.directory))
    with pytest.raises(Exception, match=r"no reason is given|names no iteration") as caught:
        send_request(records.directory, "mix", 0.3, timeout_s=5, print_line=answer)
    assert type(caught.value).__name__ == "InputError"
    assert len(read_events(records.directory)) == before + 1


FILES = {
    "nothing": b"",
    "words": b"hello",
    "half of JSON": b'{"iterations": ',
    "a list": b"[1, 2]",
    "bytes": bytes(range(256)),
    "brackets": b"[" * 100_000,
    "a field twice": b'{"iterations": 1, "iterations": 2}',
}


@pytest.mark.parametrize("name", FILES)
def test_summaries_and_tables_that_are_none(records, name):
    run = records.directory
    for file, act in (
        ("summary.json", lambda: read_summary(run)),
        ("iterations.parquet", lambda: read_iterations(run)),
        ("replies/000001.parquet", lambda: read_replies(run, 1)),
    ):
        refused(run, act, file, "does not exist")
        (run / file).write_bytes(FILES[name])
        refused(run, act, file)
    refused(run, lambda: RunDirectory.open(run), "iterations.parquet")


def test_tables_of_something_else(records):
    run = records.directory
    pq.write_table(pa.table({"round": [1]}), run / "iterations.parquet")
    refused(run, lambda: RunDirectory.open(run), "iterations.parquet", "'iteration'")
    pq.write_table(pa.table({"iteration": ["one"]}), run / "iterations.parquet")
    refused(run, lambda: RunDirectory.open(run), "iterations.parquet", "'iteration'")


def test_going_on_leaves_what_is_not_of_the_run(records):
    for number in (1, 2):
        records.add_iteration(iteration(number))
    (records.directory / "replies/mine.parquet").write_text("notes")
    (records.directory / "replies/000002.parquet").write_text("half")
    assert RunDirectory.open(records.directory, through=1).last == 1
    assert [path.name for path in (records.directory / "replies").iterdir()] == ["mine.parquet"]


def test_names_that_no_run_can_have(tmp_path):
    for name in ("x" * 5000, "a\0b", "", "\ud800", "none"):
        refused(tmp_path, lambda n=name: run_directory(tmp_path / n if n != "" else tmp_path), "not the directory")
