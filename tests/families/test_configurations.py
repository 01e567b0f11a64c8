"""The configurations of `configs/models` can be read, and their models fit by the doctor's reckoning, at real sizes."""

import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from controller.checkpoint_checks import check_adapters_fit, check_rater
from deploy.preflight import memory
from deploy.preflight.capacity import check_memory
from deploy.preflight.finding import Severity
from deploy.preflight.memory import GIB, ModelShape
from deploy.preflight.settings import check_settings
from speech.families import family
from tests.deploy.preflight.cases import gpus, machine

FAMILIES = ["glm-4-voice", "kimi-audio", "qwen2.5-omni", "step-audio-2", "vita-audio", "vita-audio-plus"]
SIZES = {"1gpu": 1, "4gpu": 4, "4gpu-lora": 4, "8gpu": 8}
LARGE = ("glm-4-voice", "kimi-audio")
"""Models whose optimizer has no room on three GPUs."""
QWEN7B = dict(
    model_type="qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False,
)  # fmt: skip
REAL = {
    "vita-audio-boost": QWEN7B | {"vocab_size": 168072},
    "vita-audio-plus": QWEN7B | {"vocab_size": 168072},
    "glm-4-voice": dict(
        model_type="glm", hidden_size=4096, intermediate_size=13696, num_hidden_layers=40, num_attention_heads=32,
        num_key_value_heads=2, head_dim=128, vocab_size=168960, tie_word_embeddings=False,
    ),
    "step-audio-2": QWEN7B | {"vocab_size": 158720},
    "kimi-audio": QWEN7B | {"model_type": "kimi_audio", "vocab_size": 168448},
    "qwen2.5-omni": QWEN7B,
}  # fmt: skip
"""Dimensions of the released models, from their config.json (for ChatGLM's, by transformers' names)."""


def shape(config: Config) -> ModelShape:
    """Of the released model, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import speech.modeling.kimi_audio  # noqa: F401  registers its classes

    settings = REAL[config.model.family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    tensors = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    frozen = family(config.model.family).parameters(config.model.freeze)
    return memory.read_model_shape(
        settings, tensors, frozen, config.learner.lora.r, check_adapters_fit(config, tensors)
    )


def test_every_file_is_a_model_or_a_size(root):
    assert {path.stem for path in (root / "configs/models").glob("*.yaml")} == {"paper", *FAMILIES, *SIZES}


@pytest.mark.parametrize("size", [size for size in SIZES if size != "4gpu-lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_it_fits(root, name, size, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)  # which has what the files leave to be filled in
    count, place = SIZES[size], "4gpu-lora" if size == "4gpu" and name in LARGE else size
    files = [root / f"configs/models/{file}.yaml" for file in (name, place)]
    config = load_config(files, ["reward.decoders.num_workers=0"] if name == "qwen2.5-omni" else [])
    roles = (config.rollout.num_workers, config.rollout.num_gpus), (config.learner.num_workers, config.learner.num_gpus)
    decoding = config.reward.decoders.num_workers * config.reward.decoders.num_gpus
    assert sum(members * share for members, share in roles) + decoding <= count
    assert config.rollout.num_gpus + config.reward.decoders.num_gpus <= 1 or not config.reward.decoders.num_workers
    for rater in config.reward.functions:
        check_rater(rater)
    model = shape(config)
    assert not [one.text for one in check_settings(config) if one.state is Severity.ERROR]
    needs = memory.needs(config, model, reference=True)
    found = machine(memory=200.0 * GIB * count, memory_free=190.0 * GIB * count, gpus=gpus(count, 80))
    findings = list(check_memory(config, model, needs, found))
    assert not [one.text for one in findings if one.state is Severity.ERROR]
    assert any(one.text.startswith("learner") and "weights" in one.text for one in findings)
    assert model.adapters or count > 1, "one GPU has no room for the optimiser of a whole model"
