"""Asking something of a running job: taken once, in order, on record, and never waited for without end."""

import threading
import time

import pytest

from controller.records import Records, run_directory
from controller.requests import Inbox, ask, mix_value
from speech.errors import InputError


@pytest.fixture
def run(tmp_path):
    return Records.create(tmp_path / "run", "run: {}\n").directory


def test_a_request_is_taken_once_and_answered_with_the_iteration(run):
    inbox, said, taken = Inbox.open(run), [], []

    def controller():
        deadline = time.monotonic() + 20
        while not taken and time.monotonic() < deadline:
            taken.extend(inbox.take())
            time.sleep(0.01)
        Records.open(run).add_event("mix", id=taken[0].id, value=taken[0].value, iteration=7)

    thread = threading.Thread(target=controller)
    thread.start()
    assert ask(run, "mix", 0.3, seconds=20, say=said.append) == 7
    thread.join(timeout=20)
    assert [(r.kind, r.value) for r in taken] == [("mix", 0.3)]
    assert inbox.take() == []
    assert said


def test_nobody_waits_for_ever_and_an_untaken_request_is_taken_back(run):
    inbox = Inbox.open(run)
    with pytest.raises(TimeoutError, match="did not take the request"):
        ask(run, "mix", "adaptive", seconds=0.3, say=lambda _: None)
    assert inbox.take() == []


def test_requests_of_what_is_no_running_job_are_refused(run, tmp_path):
    with pytest.raises(InputError, match="takes no requests"):
        ask(run, "mix", 0.3, seconds=1, say=print)
    with pytest.raises(InputError, match="is not the directory of a run"):
        run_directory(tmp_path)
    Inbox.open(run)
    Records.open(run).add_event("finished")
    with pytest.raises(InputError, match="has finished"):
        ask(run, "mix", 0.3, seconds=1, say=print)


def test_settings_of_lambda_in_words():
    assert mix_value("fixed=0.3") == 0.3
    assert mix_value("adaptive") == "adaptive"
    for wrong in ("fixed=2", "fixed=", "often", "fixed=many", "adaptive=1", "nan", "fixed=nan"):
        with pytest.raises(InputError, match="no setting of λ"):
            mix_value(wrong)
