"""Names given by a user or by data never lead out of the run's folder, and no key is written into it."""

import json
import os
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from configs.load import load_config
from configs.routes import ScoreRoute
from configs.schema import FILE_NAME
from configs.validate import check_config
from controller.launcher import RunFailed, _directory
from controller.validation import Validator
from duet.__main__ import main
from observability.reply_schema import ReplyProvenance, ReplyRecord
from observability.run_directory import RunDirectory, read_replies
from reward.scoring import ScoringConfig, score_groups
from reward.types import MissingScore, Scorecard
from speech.audio import Waveform
from speech.types import Prompt
from tests.controller.examples import group, reply

KEY = "zq93-x.Wm77_Lp4"


@pytest.fixture(scope="module")
def playground(root):
    return root / "configs" / "playground.yaml"


@pytest.fixture(scope="module")
def config(playground):
    return load_config(playground, [])


@settings(deadline=None)
@given(st.one_of(st.text(max_size=120), st.from_regex(FILE_NAME, fullmatch=True)))
@example("..")
@example(".")
@example("")
@example("a/..")
@example("a/b")
@example("/etc")
@example("..\\x")
@example("run\n")
@example("\nrun")
@example("run\0")
@example("-rf")
@example("~")
@example("λauf")
@example("ru\u0301n")
@example("con")
@example("a" * 100)
@example("a" * 101)
@example("a..b")
@example("auto")
def test_a_name_that_is_taken_stays_below_the_directory(config, tmp_path_factory, name):
    runs = tmp_path_factory.getbasetemp() / "runs"
    config.run.name, config.run.directory = name, str(runs)
    if not FILE_NAME.fullmatch(name):
        with pytest.raises(InputError) as refusal:
            check_config(config)
        assert str(refusal.value).startswith(f"run.name: {name!r} may hold")
        return
    check_config(config)
    directory = _directory(config)
    assert directory.resolve().parent == runs.resolve()
    assert directory.name.isascii()
    assert directory.name.isprintable()
    assert name in ("auto", directory.name)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "''", '"run\\n"'])
def test_the_command_line_refuses_a_name_that_leads_out(capsys, tmp_path, name):
    assert main(["train", f"run.name={name}", f"run.directory={tmp_path / 'runs'}"]) == 2
    assert "run.name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "-x"])
def test_a_name_of_an_evaluation_set_is_a_file_name(playground, name):
    with pytest.raises(InputError, match=r"data\.validation: .* may hold letters"):
        load_config(playground, [f"data.validation={{'{name}': x.parquet}}"])


def test_recordings_of_prompts_with_strange_ids_stay_in_their_folder(tmp_path):
    ids = ["../../escaped", "/escaped", "a/../../../escaped", "..", "a/b", "a_b", "plain-7", "x\0y", "q" * 400]
    prompts = [Prompt(id=name, token_ids=np.arange(3, dtype=np.int32), text="", facts={}) for name in ids]
    judged = [SimpleNamespace(reply=reply(0, prompt_id=name)) for name in ids]
    sound = Waveform(np.zeros(160, dtype=np.float32), 16000)
    run = tmp_path / "outer/runs/run"
    held_out = SimpleNamespace(
        _config=SimpleNamespace(validation=SimpleNamespace(num_recordings=len(ids))),
        _records=SimpleNamespace(directory=run),
        _loop=SimpleNamespace(reward=SimpleNamespace(decode=lambda replies: [sound] * len(replies))),
    )
    Validator._write_recordings(held_out, prompts, judged, "before")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2 * len(ids)
    assert {path.parent for path in written} == {run / "audio"}
    assert run / "audio/plain-7-question.wav" in written


@pytest.fixture
def key(monkeypatch) -> str:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    return KEY


def contents(directory) -> bytes:
    return b"\0".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


def test_no_file_of_a_run_holds_a_key(tmp_path, key):
    records = RunDirectory.create(tmp_path / "run", f"judge: {{note: {key}}}\n")
    try:
        raise ValueError(f"401 with Authorization: {key}")
    except ValueError as error:
        records.add_event("failed", error=str(error), trace=traceback.format_exc(), more=[{"header": (key,), key: 1}])
    records.write_summary({"raters": {"judge": f"https://judge/?key={key}"}, "path": tmp_path / key})
    details = {"text": "yes", "judge_error": f"refused: {key}"}
    asked, scoring = group(1, ids=(7, 8, 3), channels=(0, 1, 3)), ScoringConfig(total={"judge": 1.0}, others={})
    card = Scorecard(scores={"judge": MissingScore(f"judge said {key}", fault="rater")}, details=details, seconds=1.0)
    rows = [ReplyRecord(judged=j, routes=["r"], use=None) for j in score_groups(asked, [card], scoring, [ScoreRoute()])]
    records.add_replies(1, rows, ReplyProvenance(raters={}, sampling={}))
    [row] = read_replies(records.directory, 1).to_pylist()
    assert dict(row["details"]) == {"text": "yes", "judge_error": "refused: ***"}
    assert dict(row["missing"]) == {"judge": "judge said ***"}
    assert json.loads((records.directory / "summary.json").read_text())["raters"]["judge"] == "https://judge/?key=***"
    assert len(list(records.directory.rglob("*.*"))) == 4
    assert key.encode() not in contents(records.directory)


def test_no_error_holds_a_key(key, capsys, tmp_path):
    assert main(["train", f"rollout.num_workers={key}", f"run.directory={tmp_path}"]) == 2
    assert main(["train", f"mix_ratio.schedule={key}", f"run.directory={tmp_path}"]) == 2
    assert key not in str(RunFailed(f"judge died with {key}"))
    assert key not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "override",
    [
        "reward.codec.kwargs={path: x, api_key: swordfish}",
        "reward.codec.kwargs={path: x, deeper: [{password: swordfish}]}",
        "reward.codec.kwargs={path: x, header: Bearer abcdefgh.swordfish}",
        "reward.codec.kwargs={path: x, url: 'https://me:swordfish@host/'}",
        "reward.codec.kwargs={path: x, note: '${oc.env:JUDGE_API_KEY}'}",
        "mix_ratio.schedule=sk-0123456789swordfish",
    ],
)
def test_a_key_in_the_configuration_is_refused(playground, monkeypatch, override):
    monkeypatch.setitem(os.environ, "JUDGE_API_KEY", "the swordfish")
    with pytest.raises(InputError, match=r"put it in the environment and name the variable|write its name") as refusal:
        load_config(playground, [override])
    assert "swordfish" not in str(refusal.value)
    assert str(refusal.value).startswith(override.partition("=")[0])


def test_the_name_of_a_variable_is_taken(playground, key):
    config = load_config(playground, ["reward.codec.kwargs={path: x, api_key: JUDGE_API_KEY}"])
    assert "JUDGE_API_KEY" in config.yaml()
    assert key not in config.yaml()
