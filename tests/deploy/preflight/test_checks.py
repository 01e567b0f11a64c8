"""A whole examination of a user's own setup: what is broken is found, said with its remedy, and never a traceback."""

import json
import shutil
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from configs.load import load_config
from controller.inputs import read_inputs
from deploy.preflight.checks import CHECKS, examine, run_with_timeout
from deploy.preflight.finding import CheckReporter, Severity, worst
from tests.bad_input.door import Setup

LEAN = (
    "reward.functions=[{name: answer, target: 'playground.raters:Answer'}]",
    "reward.weights={answer: 1}",
    "reward.composites={}",
)
"""One rater that needs no ears."""


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def setup(tmp_path, world, root) -> Setup:
    """A user's configuration, data and checkpoint, all good."""
    return Setup(tmp_path, world, root)


def examined(setup: Setup, *overrides: str):
    return list(examine(setup.config, [*LEAN, *overrides]))


def test_a_good_setup_passes_every_check(setup):
    found = examined(setup)
    assert worst(found) is Severity.FINE, found
    said = [finding.check for finding in found]
    assert list(dict.fromkeys(said)) == [
        *("configuration", "arithmetic", "versions", "cores and GPUs", "vocabulary", "weights", "memory"),
        *("shared memory", "disk", "network", "data", "codec", "rater", "start"),
    ]
    assert found[-1].text == "a run can start: 24 prompts, 24 demonstrations"


def no_config(setup):
    setup.config.unlink()


def unknown_key(setup):
    setup.config.write_text(setup.config.read_text() + "rollouts: {workers: 1}\n")


def no_checkpoint(setup):
    shutil.rmtree(setup.base)


def no_weights(setup):
    (setup.base / "model.safetensors").unlink()


def fewer_tokens(setup):
    def drop(tokenizer):
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|end_of_audio|>"]
        del tokenizer["model"]["vocab"]["<|end_of_audio|>"]

    setup.edit("tokenizer.json", drop)


def short_sight(setup):
    setup.edit("config.json", lambda config: config.update(max_position_embeddings=128))


def other_end(setup):
    setup.edit("generation_config.json", lambda config: config.update(eos_token_id=[2, 9]))


def no_shape(setup):
    setup.edit("config.json", lambda config: config.pop("num_hidden_layers") and None)


def no_data(setup):
    setup.data("train").unlink()


def damaged_data(setup):
    setup.data("demonstrations").write_bytes(setup.data("demonstrations").read_bytes()[:-200])


def bad_rows(setup):
    table = setup.table("train")
    ids = table["id"].to_pylist()
    ids[4], ids[9] = ids[3], ids[3]
    column = table.schema.get_field_index("id")
    pq.write_table(table.set_column(column, "id", pa.array(ids)), setup.data("train"))


def trained_on(setup):
    pq.write_table(setup.table("train"), setup.data("held_out"))


def few_prompts(setup):
    pq.write_table(setup.table("train").slice(0, 8), setup.data("train"))


def run_that_is_there(setup):
    (setup.runs / "bad").mkdir(parents=True)
    (setup.runs / "bad/config.yaml").touch()


ERRORS = [
    (no_config, [], "configuration", "does not exist", "configs/schema.py"),
    (unknown_key, [], "configuration", "unknown configuration key 'rollouts'", "configs/schema.py"),
    (None, ["rollout.n=1"], "configuration", "1 is too small; at least 2", "configs/schema.py"),
    (None, ["learner.num_gpus=1"], "cores and GPUs", "the actors need 2 GPUs", "cluster.address"),
    (no_checkpoint, [], "model", "is not a checkpoint", "docs/own-model.md"),
    (no_weights, [], "model", "holds no *.safetensors file", "docs/own-model.md"),
    (fewer_tokens, [], "model", "'<|end_of_audio|>'", "docs/own-model.md"),
    (no_shape, [], "model", "num_hidden_layers None", "docs/own-model.md"),
    (short_sight, [], "weights", "positions for 128 tokens", "model.max_model_len=128"),
    (None, ["rollout.cpu_kv_cache_gib=60000"], "memory", "all actors together need", "rollout.cpu_kv_cache_gib"),
    (
        None,
        ["checkpoint.max_to_keep=0", "train.num_steps=1000000"],
        "disk",
        "100000 checkpoints",
        "checkpoint.max_to_keep",
    ),
    (run_that_is_there, [], "disk", "already holds a run", "another run.name"),
    (None, ["metrics.host=nowhere.invalid"], "network", "cannot resolve 'nowhere.invalid'", "metrics.host"),
    (no_data, [], "data", "train.parquet does not exist", "docs/own-data.md"),
    (damaged_data, [], "data", "is not a Parquet file", "docs/own-data.md"),
    (bad_rows, [], "data", "2 of 24 rows cannot be used", "docs/own-data.md"),
    (None, ["reward.codec.kwargs={path: nowhere}"], "codec", "codec file nowhere does not exist", "own-model.md"),
    (few_prompts, [], "start", "rollout.batch_size: 16 an iteration", ""),
]
WARNINGS = [
    (other_end, [], "vocabulary", "eos_token_id is 9", "generation_config.json"),
    (trained_on, [], "data", "24 of 24 prompts are also training prompts", "remove them"),
    (None, ["checkpoint.interval=0"], "configuration", "starts again", "checkpoint.interval"),
]

REFUSED = [no_checkpoint, no_weights, fewer_tokens, no_data, damaged_data, bad_rows, few_prompts]
assert set(REFUSED) <= {case[0] for case in ERRORS}


@pytest.mark.parametrize(
    ("broken", "overrides", "check", "said", "remedy", "state"),
    [(*case, Severity.ERROR) for case in ERRORS] + [(*case, Severity.WARNING) for case in WARNINGS],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_defect_is_found_with_its_remedy(setup, broken, overrides, check, said, remedy, state):
    if broken is not None:
        broken(setup)
    found = examined(setup, *overrides)
    about = [finding for finding in found if finding.state is state and finding.check == check and said in finding.text]
    assert about, found
    assert remedy in about[0].remedy
    assert worst(found) is state
    assert all("the check failed" not in finding.text for finding in found)
    if broken in REFUSED:  # what `duet train` refuses is an error in its words
        with pytest.raises(InputError) as refused:
            read_inputs(load_config(setup.config, list(LEAN)))
        errors = [finding.text for finding in found if finding.state is Severity.ERROR]
        assert any(str(refused.value) in text for text in errors), (str(refused.value), errors)


def test_a_check_without_its_input_is_reported_as_not_checked(setup):
    no_checkpoint(setup)
    found = [finding for finding in examined(setup) if finding.text.startswith("not checked")]
    assert [(finding.check, finding.state) for finding in found] == [
        (name, Severity.WARNING) for name in ("memory", "disk", "data", "codec", "raters")
    ]
    assert found[0].text == "not checked: the shape of the model is not known"


def test_a_check_that_fails_is_a_finding():
    voice = CheckReporter("own")

    def check():
        yield voice.fine("so far")
        raise ZeroDivisionError("division by zero\nof two lines")

    found = run_with_timeout(5.0, "own", check)
    assert [finding.state for finding in found] == [Severity.FINE, Severity.ERROR]
    assert found[1].text == "the check failed: ZeroDivisionError: division by zero of two lines"


def test_a_check_that_hangs_is_a_finding():
    def check():
        yield CheckReporter("own").fine("so far")
        time.sleep(60)

    started = time.monotonic()
    found = run_with_timeout(0.2, "own", check)
    assert time.monotonic() - started < 10
    assert [finding.text for finding in found] == ["so far", "the check did not finish within 0.2 s"]


def test_a_secret_in_an_error_is_hidden(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-key-that-must-stay-hidden")

    def check():
        raise ValueError("refused a-key-that-must-stay-hidden")
        yield

    (found,) = run_with_timeout(5.0, "own", check)
    assert found.text == "the check failed: ValueError: refused ***"


def test_the_dashboards_address_is_no_cluster_to_join(setup, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    found = [finding for finding in examined(setup) if finding.check == "cluster"]
    assert [finding.state for finding in found] == [Severity.WARNING]
    assert "python -m duet doctor" in found[0].remedy


def test_an_unreachable_cluster_is_an_error(setup):
    found = [finding for finding in examined(setup, "cluster.address=127.0.0.1:9") if finding.check == "cluster"]
    assert [finding.state for finding in found] == [Severity.ERROR]
    assert "127.0.0.1:9 does not answer" in found[0].text
    assert found[0].remedy == "see docs/cluster.md"


def test_the_order_of_the_checks():
    assert next(iter(CHECKS)) == "configuration"
    assert list(CHECKS)[-1] == "start"


def test_nothing_is_written(setup):
    before = sorted(path.name for path in setup.folder.rglob("*"))
    examined(setup)
    assert sorted(path.name for path in setup.folder.rglob("*")) == before
    assert json.dumps([finding.text for finding in examined(setup)])
