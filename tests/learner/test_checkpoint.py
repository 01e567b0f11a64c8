"""Unusable and damaged checkpoints are rejected before a learner starts."""

import errno
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from common.errors import InputError
from learner.checkpoint import MANIFEST, CheckpointManifest, as_os_error, check_checkpoint, fingerprint
from learner.checkpoint_state import read_state_tree, write_state_tree

KIND = {"ranks": 2, "zero_stage": 2, "dtype": "float32"}
TREE = {
    "state": {0: {"step": torch.tensor(3.0), "moment": torch.arange(6.0).reshape(2, 3)[:, 1]}},
    "groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.95), "foreach": None, "fused": False, "name": "λ"}],
    "empty": [torch.zeros(0), torch.tensor([float("nan")], dtype=torch.bfloat16)],
}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "optimizer").mkdir()
    write_state_tree(tmp_path / "optimizer/rank-0.safetensors", TREE)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    facts = KIND | {"parameters": "", "version": 3, "skips": 1}
    CheckpointManifest.write(tmp_path, patterns=("*.safetensors", "optimizer/*"), **facts)
    return tmp_path


def test_a_whole_checkpoint_is_taken(checkpoint):
    found = check_checkpoint(checkpoint, **KIND)
    assert (found.version, found.skips) == (3, 1)
    assert set(found.files) == {"model.safetensors", "optimizer/rank-0.safetensors"}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ranks", 4, "learner.num_workers: 4, but .* was saved with 2"),
        ("zero_stage", 3, "learner.zero_stage: 3, but .* was saved with 2"),
        ("dtype", "bfloat16", "model.dtype: bfloat16, but .* was saved with float32"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(checkpoint, key, value, said):
    with pytest.raises(InputError, match=said):
        check_checkpoint(checkpoint, **(KIND | {key: value}))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer/rank-0.safetensors"])
def test_a_file_that_is_missing_or_cut_off_is_named(checkpoint, name):
    path = checkpoint / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=rf"{path.name} has \d+ bytes of"):
        check_checkpoint(checkpoint, **KIND)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name} is missing"):
        check_checkpoint(checkpoint, **KIND)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"ranks": 2}', "\x00", '"text"', '{"files": 1'])
def test_without_its_manifest_a_checkpoint_is_not_whole(checkpoint, content):
    path = checkpoint / MANIFEST
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=MANIFEST):
        check_checkpoint(checkpoint, **KIND)


@pytest.mark.parametrize("files", [1, None, ["a"], {"a": "many"}, {"a": None}])
def test_a_manifest_that_lists_no_files_is_refused(checkpoint, files):
    path = checkpoint / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    with pytest.raises(InputError, match=MANIFEST):
        check_checkpoint(checkpoint, **KIND)


def test_a_full_disk_leaves_no_manifest(checkpoint):
    """The kernel's real error: the temporary file is /dev/full."""
    (checkpoint / MANIFEST).unlink()
    (checkpoint / f".{MANIFEST}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        CheckpointManifest.write(checkpoint, patterns=("*",), **KIND, parameters="", version=3, skips=0)
    assert caught.value.errno == errno.ENOSPC
    assert not (checkpoint / MANIFEST).exists()


def test_a_disk_error_regains_its_errno():
    full = as_os_error(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert full.errno == errno.ENOSPC
    assert "No space left" in str(full)
    assert as_os_error(SafetensorError("invalid header")).errno is None


def test_a_fingerprint_tells_names_shapes_and_what_is_trained():
    facts = [("a", (2, 3), True), ("b", (4,), True)]
    assert fingerprint(facts) == fingerprint(reversed(facts))
    others = [[("a", (2, 3), True)], [("a", (3, 2), True), facts[1]], [("a", (2, 3), False), facts[1]]]
    assert fingerprint(facts) not in map(fingerprint, others)


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "state.safetensors"
    write_state_tree(path, TREE)
    found = read_state_tree(path)
    assert found["groups"] == TREE["groups"]
    assert isinstance(found["groups"][0]["betas"], tuple)
    assert torch.equal(found["state"][0]["moment"], TREE["state"][0]["moment"])
    assert found["state"][0]["step"].shape == ()
    assert found["empty"][0].shape == (0,)
    assert found["empty"][1].dtype == torch.bfloat16
    assert found["empty"][1].isnan().all()


def test_only_plain_values_are_stored(tmp_path):
    with pytest.raises(TypeError, match="a object cannot"):
        write_state_tree(tmp_path / "state.safetensors", {"state": object()})


@given(data=st.data())
def test_a_damaged_tree_is_refused_or_read_and_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "state.safetensors"
    write_state_tree(path, TREE)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content) - 1)))
    path.write_bytes(content[:cut])
    refusal = None
    try:
        read_state_tree(path)
    except InputError as error:
        refusal = str(error)
    assert str(path) in refusal if refusal is not None else cut is None
