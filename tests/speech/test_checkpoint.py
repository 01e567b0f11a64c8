"""A checkpoint brings weights as safetensors, and no code unless that was asked for."""

import json

import pytest

from common.errors import InputError
from speech.checkpoint import check_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def test_a_plain_checkpoint_is_taken(checkpoint):
    assert check_checkpoint(checkpoint, trust_remote_code=False) == [checkpoint / "model.safetensors"]
    (checkpoint / "pytorch_model.bin").touch()  # beside safetensors, never read
    check_checkpoint(checkpoint, trust_remote_code=False)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_in_one_sentence(checkpoint, name):
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    for trusted in (False, True):
        with pytest.raises(InputError, match=rf"holds no \*\.safetensors file, only {name}") as refusal:
            check_checkpoint(checkpoint, trust_remote_code=trusted)
        assert "\n" not in str(refusal.value)


def test_no_weights_at_all_are_refused(checkpoint):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"holds no \*\.safetensors file$"):
        check_checkpoint(checkpoint, trust_remote_code=False)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "named", [{"AutoModelForCausalLM": "trap.Trap"}, {"AutoTokenizer": ["trap.Trap", None]}, "trap.Trap"]
)
def test_code_of_its_own_is_refused_unless_trusted(checkpoint, file, named):
    (checkpoint / file).write_text(json.dumps({"auto_map": named}))
    with pytest.raises(InputError, match=rf"{file} wants code of its own.*trap\.Trap.*model\.trust_remote_code=true"):
        check_checkpoint(checkpoint, trust_remote_code=False)
    assert check_checkpoint(checkpoint, trust_remote_code=True)


def test_a_description_that_is_no_json_is_refused(checkpoint):
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        check_checkpoint(checkpoint, trust_remote_code=False)
