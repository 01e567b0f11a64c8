"""Broken checkpoints: a model's is rejected by name, a run's is skipped for the newest complete one."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from controller.checkpointing import COUNTS, STATE, CheckpointManager
from tests.bad_input.door import Setup, contents, refused

pytestmark = pytest.mark.timeout(60)


def weights(setup: Setup, change) -> None:
    path = setup.own("model.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut(setup: Setup, name: str, keep: float) -> None:
    path = setup.own(name)
    os.truncate(path, int(path.stat().st_size * keep))


def write(setup: Setup, name: str, content: bytes) -> None:
    setup.own(name).write_bytes(content)


def without_token(setup: Setup, token: str) -> None:
    path = setup.own("tokenizer.json")
    path.write_text(path.read_text().replace(token, "<|other|>"))


def index(setup: Setup, content: object) -> None:
    (setup.base / "model.safetensors.index.json").write_text(json.dumps(content))


def fused(setup: Setup) -> None:
    """Speech tokens in two pieces."""

    def swap(content: dict) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["<|audio_3|>"], vocabulary["<|pad|>"] = vocabulary["<|pad|>"], vocabulary["<|audio_3|>"]
        vocabulary["<|audio_511|>"], vocabulary["<|im_start|>"] = (
            vocabulary["<|im_start|>"],
            vocabulary["<|audio_511|>"],
        )
        content["added_tokens"] = []

    setup.edit("tokenizer.json", swap)


CASES = {
    "no folder": (lambda s: shutil.rmtree(s.base), "base is not a checkpoint"),
    "an empty folder": (lambda s: [f.unlink() for f in s.base.iterdir()], "base is not a checkpoint"),
    "no config.json": (lambda s: (s.base / "config.json").unlink(), "config.json does not exist"),
    "no tokenizer": (lambda s: (s.base / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "no weights": (lambda s: (s.base / "model.safetensors").unlink(), "holds no *.safetensors file"),
    "weights of PyTorch": (
        lambda s: (s.base / "model.safetensors").rename(s.base / "pytorch_model.bin"), "holds no *.safetensors file",
    ),
    "links to nowhere": (
        lambda s: ((s.base / "config.json").unlink(), (s.base / "config.json").symlink_to("nowhere")), "config.json",
    ),
    "config.json of nothing": (lambda s: write(s, "config.json", b""), "config.json is not JSON"),
    "config.json that is a list": (lambda s: s.edit("config.json", lambda c: [c]), "config.json", "vocab_size"),
    "config.json of bytes": (lambda s: write(s, "config.json", bytes(range(256))), "config.json", "UTF-8"),
    "config.json of brackets": (lambda s: write(s, "config.json", b"[" * 100_000), "config.json", "too deeply"),
    "a key twice": (lambda s: write(s, "config.json", b'{"vocab_size": 1, "vocab_size": 547}'), "vocab_size", "twice"),
    "no vocab_size": (lambda s: s.edit("config.json", lambda c: c.pop("vocab_size") and None), "vocab_size"),
    "vocab_size of a word": (
        lambda s: s.edit("config.json", lambda c: c.update(vocab_size="547")), "vocab_size is '547'", "whole number",
    ),
    "vocab_size of true": (lambda s: s.edit("config.json", lambda c: c.update(vocab_size=True)), "vocab_size is True"),
    "vocab_size of a fraction": (lambda s: s.edit("config.json", lambda c: c.update(vocab_size=547.5)), "547.5"),
    "vocab_size of 10 ** 15": (
        lambda s: s.edit("config.json", lambda c: c.update(vocab_size=10**15)), "vocab_size is 1000000000000000",
    ),
    "vocab_size too small": (lambda s: s.edit("config.json", lambda c: c.update(vocab_size=9)), "vocab_size is 9"),
    "vocab_size beside the weights": (
        lambda s: s.edit("config.json", lambda c: c.update(vocab_size=600)), "config.json", "[547, 192]", "[600, 192]",
    ),
    "hidden_size beside the weights": (
        lambda s: s.edit("config.json", lambda c: c.update(hidden_size=64)), "[547, 192]", "[547, 64]",
    ),
    "no hidden_size": (lambda s: s.edit("config.json", lambda c: c.pop("hidden_size") and None), "hidden_size None"),
    "half the weights": (lambda s: cut(s, "model.safetensors", 0.5), "cannot read"),
    "weights but a byte": (lambda s: cut(s, "model.safetensors", 0.9999999), "cannot read"),
    "weights of nothing": (lambda s: cut(s, "model.safetensors", 0), "cannot read"),
    "weights of words": (lambda s: write(s, "model.safetensors", b"pickle" * 100), "cannot read"),
    "weights of a huge header": (
        lambda s: write(s, "model.safetensors", b"\xff" * 7 + b"\x7f{}"), "cannot read",
    ),
    "an embedding of another width": (
        lambda s: weights(s, lambda t: t.update({"model.embed_tokens.weight": np.zeros((547, 8), np.float32)})),
        "model.embed_tokens.weight", "[547, 8]", "[547, 192]",
    ),
    "an output layer of other rows": (
        lambda s: weights(s, lambda t: t.update({"lm_head.weight": np.zeros((100, 192), np.float32)})),
        "lm_head.weight", "[100, 192]", "[547, 192]",
    ),
    "an index of nothing": (lambda s: index(s, {}), "model.safetensors.index.json has no weight_map"),
    "an index of a list": (lambda s: index(s, []), "model.safetensors.index.json has no weight_map"),
    "an index to nowhere": (
        lambda s: index(s, {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}),
        "lm_head.weight", "'model-00001-of-00002.safetensors'", "does not exist",
    ),
    "an index that climbs": (
        lambda s: index(s, {"weight_map": {"w": "../base/model.safetensors"}}), "'../base/model.safetensors'",
    ),
    "an index of other weights": (
        lambda s: index(s, {"weight_map": {"other.weight": "model.safetensors"}}), "other.weight",
    ),
    "a tokenizer of nothing": (lambda s: write(s, "tokenizer.json", b""), "tokenizer.json is not a tokenizer"),
    "half a tokenizer": (lambda s: cut(s, "tokenizer.json", 0.5), "tokenizer.json is not a tokenizer"),
    "a tokenizer of bytes": (lambda s: write(s, "tokenizer.json", bytes(range(256))), "tokenizer.json"),
    "a tokenizer that is a list": (lambda s: write(s, "tokenizer.json", b"[]"), "tokenizer.json is not a tokenizer"),
    "no end of reply": (lambda s: without_token(s, "<|im_end|>"), "no token '<|im_end|>'", "end-of-reply"),
    "no padding": (lambda s: without_token(s, "<|pad|>"), "no token '<|pad|>'", "padding"),
    "no begin of speech": (lambda s: without_token(s, "<|begin_of_audio|>"), "no token '<|begin_of_audio|>'"),
    "no end of speech": (lambda s: without_token(s, "<|end_of_audio|>"), "no token '<|end_of_audio|>'"),
    "no speech": (lambda s: without_token(s, "<|audio_0|>"), "no token '<|audio_0|>'", "first speech"),
    "a gap in the speech": (lambda s: without_token(s, "<|audio_300|>"), "512", "300"),
    "speech in two pieces": (fused, "speech tokens must be contiguous"),
}  # fmt: skip
"""By name: what is broken of the model's checkpoint, and what the error must mention."""


@pytest.mark.parametrize("name", CASES)
def test_of_a_model(setup: Setup, name: str):
    change, *mentions = CASES[name]
    change(setup)
    refused(setup.folder, setup.enter, *mentions)


GOOD = {
    "weight_version": 3,
    "mix": {"smoothed": 0.2, "updates": 3, "override": None},
    "prompts": 48,
    "demonstrations": 48,
    "data": {"data.prompts": "0123456789abcdef"},
}


@pytest.fixture
def checkpoints(tmp_path) -> CheckpointManager:
    """Two of them, of the iterations 3 and 6."""
    found = CheckpointManager(tmp_path)
    for iteration in (3, 6):
        found.write(iteration, GOOD, lambda folder: save_file({"w": np.ones(9)}, folder / "model.safetensors"))
    return found


def altered(change):
    """Read a checkpoint whose controller.json has changed content."""

    def alter(folder: Path) -> None:
        content = json.loads((folder / STATE).read_text())
        replaced = change(content)
        (folder / STATE).write_text(json.dumps(content if replaced is None else replaced))

    return alter


DAMAGES = {
    "no controller.json": lambda f: (f / STATE).unlink(),
    "an empty folder": lambda f: [path.unlink() for path in f.iterdir()],
    "a file": lambda f: (shutil.rmtree(f), f.write_text("checkpoint")),
    "an empty controller.json": lambda f: (f / STATE).write_bytes(b""),
    "half of controller.json": lambda f: (f / STATE).write_bytes((f / STATE).read_bytes()[:40]),
    "bytes": lambda f: (f / STATE).write_bytes(bytes(range(256))),
    "brackets": lambda f: (f / STATE).write_bytes(b"[" * 100_000),
    "a folder of that name": lambda f: ((f / STATE).unlink(), (f / STATE).mkdir()),
    "a list": altered(lambda c: [c]),
    "nothing": altered(lambda c: {}),
    "another iteration": altered(lambda c: c.update(iteration=5)),
    "an endless iteration": altered(lambda c: c.update(iteration=float("inf"))),
    "an iteration of true": altered(lambda c: c.update(iteration=True)),
    "an iteration of words": altered(lambda c: c.update(iteration="6")),
    "no version": altered(lambda c: c.pop("weight_version") and None),
    "a version of a fraction": altered(lambda c: c.update(weight_version=3.5)),
    "a negative place in the data": altered(lambda c: c.update(prompts=-1)),
    "no place in the data": altered(lambda c: c.update(demonstrations=None)),
    "no λ": altered(lambda c: c.pop("mix") and None),
    "λ of a number": altered(lambda c: c.update(mix=0.5)),
    "λ without its average": altered(lambda c: c["mix"].pop("smoothed") and None),
    "λ with something strange": altered(lambda c: c["mix"].update(strange=1)),
    "λ beyond one": altered(lambda c: c["mix"].update(smoothed=1.5)),
    "λ that is no number": altered(lambda c: c["mix"].update(smoothed=float("nan"))),
    "λ of a strange mode": altered(lambda c: c["mix"].update(override="sometimes")),
    "half the weights": lambda f: os.truncate(f / "model.safetensors", 60),
    "weights of nothing": lambda f: os.truncate(f / "model.safetensors", 0),
}
"""By name: what happened to the newest checkpoint of a run."""


@pytest.mark.parametrize("name", DAMAGES)
def test_of_a_run(checkpoints: CheckpointManager, tmp_path: Path, name: str):
    DAMAGES[name](tmp_path / "checkpoints/000006")
    before = contents(tmp_path)
    found = checkpoints.newest()
    assert (found.iteration, found.state) == (3, GOOD | {"iteration": 3})
    DAMAGES[name](tmp_path / "checkpoints/000003")
    if name != "another iteration":
        refused(tmp_path, checkpoints.newest, str(tmp_path), "no complete checkpoint", "000006, 000003 are damaged")
    assert {n: d for n, d in contents(tmp_path).items() if "000006" in n} == {
        n: d for n, d in before.items() if "000006" in n
    }


def test_what_is_no_checkpoint_is_passed_over(checkpoints, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "000006", folder / ".000009.part")
    shutil.copytree(folder / "000006", folder / "9 copy")
    shutil.copytree(folder / "000006", folder / "000012")  # a copy under a wrong number
    (folder / "7²").mkdir()
    assert checkpoints.newest().iteration == 6
    checkpoints.write(999_999, GOOD, lambda path: None)
    checkpoints.write(1_000_000, GOOD, lambda path: None)
    assert checkpoints.newest().iteration == 1_000_000, "by number, not by name"
    checkpoints.write(1_000_001, GOOD, lambda path: None, keep=2)
    assert {path.name for path in folder.iterdir() if path.name.isdecimal()} == {"1000000", "1000001"}
    checkpoints.write(1_000_000, GOOD, lambda path: None, keep=1)  # of a run that went back
    assert {path.name for path in folder.iterdir()} == {"1000000", "9 copy", "7²"}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(keys=st.lists(st.sampled_from(["iteration", *GOOD]), min_size=1, max_size=3), value=ANYTHING)
def test_a_damaged_state_is_never_taken_for_a_whole_one(keys, value):
    from controller.checkpointing import _is_valid

    changed = GOOD | {"iteration": 6} | dict.fromkeys(keys, value)
    # What is accepted must be what a run can go on from.
    if _is_valid(changed):
        assert all(type(changed[key]) is int and changed[key] >= 0 for key in COUNTS)
        assert all(isinstance(mark, str) for mark in changed["data"].values())
        assert set(changed["mix"]) == set(GOOD["mix"])


@given(content=st.binary(max_size=200), at=st.integers(0, 10**6))
def test_bytes_in_a_state_never_crash(tmp_path_factory, content, at):
    run = tmp_path_factory.mktemp("run")
    checkpoints = CheckpointManager(run)
    checkpoints.write(1, GOOD, lambda folder: None)
    path = checkpoints.write(2, GOOD, lambda folder: None) / STATE
    whole = path.read_bytes()
    at %= len(whole)
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    assert checkpoints.newest().iteration in (1, 2)
    path.write_bytes(whole[:at])
    assert checkpoints.newest().iteration == 1


def test_no_checkpoints_at_all(tmp_path):
    for run in (tmp_path, tmp_path / "none"):
        assert CheckpointManager(run).newest() is None
