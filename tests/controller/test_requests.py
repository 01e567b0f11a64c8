"""Asking something of a running job: taken once, in order, on record, and never waited for without end."""

import threading
import time

import pytest

from common.errors import InputError
from controller.requests import ControlInbox, parse_mix_value, send_request
from observability.run_directory import RunDirectory, run_directory


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run", "run: {}\n").directory


def answering(run, inbox, answer):
    """A controller that answers the first request it finds."""

    def controller():
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for request in inbox.take():
                RunDirectory.open(run).add_event(id=request.id, **answer(request.content))
                inbox.done(request)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=controller)
    thread.start()
    return thread


def test_a_request_is_taken_once_and_answered_with_the_iteration(run):
    inbox, said, taken = ControlInbox.open(run), [], []

    def answer(content):
        taken.append(content)
        return {"kind": "mix", "iteration": 7}

    thread = answering(run, inbox, answer)
    assert send_request(run, "mix", 0.3, seconds=20, say=said.append) == 7
    thread.join(timeout=20)
    assert taken == [{"kind": "mix", "value": 0.3}]
    assert inbox.take() == []
    assert list((run / "requests").iterdir()) == []
    assert said


def test_a_refusal_is_told_with_its_reason(run):
    thread = answering(
        run, ControlInbox.open(run), lambda _: {"kind": "request_rejected", "reason": "λ = 3 is outside [0, 1]"}
    )
    with pytest.raises(InputError, match=r"refused: λ = 3 is outside \[0, 1\]"):
        send_request(run, "mix", 3, seconds=20, say=print)
    thread.join(timeout=20)


def test_a_request_that_is_claimed_in_the_last_moment_is_not_said_to_be_taken_back(run):
    inbox = ControlInbox.open(run)

    def claim_and_answer_late():
        found = []
        while not found:
            found = inbox.take()
        time.sleep(0.6)
        RunDirectory.open(run).add_event("mix", id=found[0].id, iteration=3)
        inbox.done(found[0])

    thread = threading.Thread(target=claim_and_answer_late)
    thread.start()
    assert send_request(run, "mix", 0.3, seconds=0.3, say=lambda _: None) == 3
    thread.join(timeout=20)


def test_a_request_that_was_claimed_and_not_answered_is_taken_again(run):
    (run / "requests").mkdir()
    (run / "requests/1.json").write_text('{"kind": "mix", "value": 0.3}')
    assert [r.id for r in ControlInbox(run / "requests").take()] == ["1"]
    assert [r.id for r in ControlInbox.open(run).take()] == ["1"]


def test_what_is_no_request_is_passed_on_to_be_refused(run):
    inbox = ControlInbox.open(run)
    for name, text in (("1", "{"), ("2", "[]")):
        (run / f"requests/{name}.json").write_text(text)
    assert [r.content for r in inbox.take()] == [None, []]


def test_nobody_waits_for_ever_and_an_untaken_request_is_taken_back(run):
    inbox = ControlInbox.open(run)
    with pytest.raises(TimeoutError, match="did not take the request"):
        send_request(run, "mix", "adaptive", seconds=0.3, say=lambda _: None)
    assert inbox.take() == []


def test_requests_of_what_is_no_running_job_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="takes no requests"):
        send_request(run, "mix", 0.3, seconds=1, say=print)
    with pytest.raises(InputError, match="is not the directory of a run"):
        run_directory(tmp_path)
    ControlInbox.open(run)
    RunDirectory.open(run).add_event("finished")
    with pytest.raises(InputError, match="has finished"):
        send_request(run, "mix", 0.3, seconds=1, say=print)


def test_settings_of_lambda_in_words():
    assert parse_mix_value("fixed=0.3") == 0.3
    assert parse_mix_value("adaptive") == "adaptive"
    for wrong in ("fixed=2", "fixed=", "often", "fixed=many", "adaptive=1", "nan", "fixed=nan"):
        with pytest.raises(InputError, match="no setting of λ"):
            parse_mix_value(wrong)
