"""The real vLLM engine: what it samples, what it reports, and that it takes new weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from common.errors import InputError
from data.records import read_prompts
from learner.collate import collate
from learner.config import LoraConfig
from learner.lora import Adapters
from learner.micro_batches import TrainingSample
from learner.policy import PolicyModel
from rollout.vllm_engine import PartialWeightUpdate, SamplingConfig, VllmEngine
from speech.families import PLAYGROUND
from speech.grammar import allowed_masks, token_kinds
from speech.types import Finish
from speech.vocabulary import Vocabulary
from tests.rollout.examples import engine_settings
from weight_sync.lora_merge import merge_lora
from weight_sync.senders import DirectorySender
from weight_sync.source import WeightSource, named_weights
from weight_sync.update import WeightUpdate, adapter_name

SAMPLING = SamplingConfig(temperature=0.8, max_tokens=96)
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("rollout engine")]


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def prompts(world, vocabulary):
    return read_prompts(world / "data/train.parquet", vocabulary)[:64]


@pytest.fixture(scope="module")
def engine(world, vocabulary) -> VllmEngine:
    settings = engine_settings(world)
    return VllmEngine(settings, PLAYGROUND, vocabulary, seed=0)


@pytest.fixture(scope="module")
def groups(engine, prompts):
    return engine.generate(prompts, 4, SAMPLING, list(range(0, 4 * len(prompts), 4)), "w")


@pytest.fixture
def scorer(world, vocabulary) -> PolicyModel:
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32).eval()
    return PolicyModel(model, torch.from_numpy(token_kinds(vocabulary)))


def gap(group, scorer, vocabulary) -> float:
    """Largest difference between what the sampler reported and what the learner computes, over a group."""
    kinds = token_kinds(vocabulary)
    rows = [
        TrainingSample(
            prompt_ids=group.prompt.token_ids,
            reply_ids=r.token_ids,
            channels=r.channels,
            allowed=allowed_masks(r.token_ids, PLAYGROUND.interleave, kinds),
            rollout_logprobs=r.logps,
            advantages=(0.0,),
            weights=(1.0,),
        )
        for r in group.replies
    ]
    batch = collate(rows, pad=vocabulary.pad, routes=1, temperature=SAMPLING.temperature, device=torch.device("cpu"))
    with torch.no_grad():
        logp, _ = scorer(batch.input_ids, batch.sources, batch.targets, batch.allowed, batch.temperatures)
    return (batch.dense(logp) - batch.rollout_logprobs).abs().max().item()


def test_every_finished_reply_keeps_to_the_structure(groups):
    replies = [reply for group in groups for reply in group.replies]
    assert len(replies) == 256
    finished = [reply for reply in replies if reply.finish == Finish.STOP]
    assert len(finished) > 240
    assert [reply.defect for reply in finished if reply.defect] == []
    assert all(reply.channels.min() >= 0 for reply in replies)


def test_the_distribution_sampled_is_the_distribution_scored(groups, scorer, vocabulary):
    """Method §7, rule 3: temperature 0.8 and the structure's mask included."""
    assert max(gap(group, scorer, vocabulary) for group in groups[:8]) < 1e-4


def test_the_same_seed_draws_the_same_replies(engine, prompts, groups):
    again = engine.generate(prompts[:4], 4, SAMPLING, list(range(0, 16, 4)), "w")
    for one, other in zip(again, groups[:4], strict=True):
        for a, b in zip(one.replies, other.replies, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
    assert len({tuple(r.token_ids.tolist()) for r in groups[0].replies}) > 1


def test_new_weights_arrive_and_the_probe_tells(engine, prompts, scorer, vocabulary, tmp_path):
    sequences = [prompt.token_ids for prompt in prompts[:2]]
    before = engine.probe(sequences)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = {name: parameter.detach().clone() for name, parameter in named_weights(scorer.model)}
    save_file(weights, tmp_path / "w.safetensors")
    engine.load_weights([tmp_path / "w.safetensors"], 5)
    assert engine.weight_version == 5
    after = engine.probe(sequences)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0.1
    [group] = engine.generate(prompts[:1], 4, SAMPLING, [0], "w")
    assert group.replies[0].weight_version == 5
    assert gap(group, scorer, vocabulary) < 1e-4


def test_layers_that_are_not_sent_keep_their_weights(engine, prompts, scorer, vocabulary, tmp_path):
    """A model of which parts are frozen: what travels is what can have changed, and what the engine fuses with it."""
    sender = DirectorySender(tmp_path / "weights")

    def load(version: int) -> WeightUpdate:
        source = WeightSource(scorer.model, sharded=False, group_bytes=1 << 18)
        parcel = sender.send(source.groups, source, version, whole=source.whole)
        engine.load_weights([parcel.path], version, whole=parcel.whole)
        return parcel

    everything = load(6)
    trained = ("layers.1.self_attn.k_proj", "layers.2.mlp.up_proj", "model.norm", "layers.3.input_layernorm")
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in scorer.model.named_parameters():
            parameter.requires_grad_(any(part in name for part in trained))
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    part = load(7)
    assert everything.whole
    assert not part.whole
    assert part.size < 0.4 * everything.size
    [group] = engine.generate(prompts[:1], 4, SAMPLING, [0], "w")
    assert group.replies[0].weight_version == 7
    assert gap(group, scorer, vocabulary) < 1e-4


@pytest.mark.parametrize(("targets", "start"), [(("*.q_proj", "*.2.mlp.up_proj"), 10), (("*_proj", "lm_head"), 20)])
def test_adapters_become_the_weights_that_they_make(engine, prompts, scorer, vocabulary, tmp_path, targets, start):
    """They are added to the checkpoint's weights at each version, and not to those of the version before; what the
    engine fuses with a layer that is adapted comes from the checkpoint. Adapters of one unit come in several files."""
    everything = {name: parameter.detach().clone() for name, parameter in named_weights(scorer.model)}
    save_file(everything, tmp_path / "w.safetensors")
    engine.load_weights([tmp_path / "w.safetensors"], start)
    adapters = Adapters(scorer.model, LoraConfig(r=4, lora_alpha=8.0, target_modules=targets))
    sequences = [prompt.token_ids for prompt in prompts[:2]]
    torch.manual_seed(3)
    probes = []
    for version in (start + 1, start + 2):
        with torch.no_grad():
            for parameter in adapters.parameters().values():
                parameter.add_(0.05 * torch.randn_like(parameter))
        source = WeightSource(scorer.model, sharded=False, named=adapters.parameters(), group_bytes=1 << 12)
        files = []
        for number, group in enumerate(source):
            save_file({name: tensor.contiguous() for name, tensor in group.items()}, tmp_path / f"{number}.safetensors")
            files.append(tmp_path / f"{number}.safetensors")
        assert len(files) > 4
        assert sum(file.stat().st_size for file in files) < 0.15 * (tmp_path / "w.safetensors").stat().st_size
        engine.load_weights(files, version, whole=False, scale=adapters.config.scale)
        [group] = engine.generate(prompts[:1], 4, SAMPLING, [0], "w")
        assert group.replies[0].weight_version == version
        assert gap(group, scorer, vocabulary) < 1e-4
        probes.append(engine.probe(sequences))
    assert max(np.abs(a - b).max() for a, b in zip(*probes, strict=True)) > 0.1


def test_adapters_of_another_checkpoint_are_not_taken(scorer, world):
    adapters = Adapters(scorer.model, LoraConfig(r=4, lora_alpha=8.0, target_modules=("*.q_proj",))).parameters()
    names = [adapter_name("model.layers.0.self_attn.q_proj", part) for part in ("A", "B")]
    a, b = (adapters[name].detach() for name in names)
    with pytest.raises(InputError, match=r"an adapter for 96 outputs and 192 inputs .* a weight of \[192, 192\]"):
        dict(merge_lora(world / "base", {names[0]: a, names[1]: b[:96]}, 2.0))
    strange = {name.replace("layers.0", "layers.9"): tensor for name, tensor in zip(names, (a, b), strict=True)}
    with pytest.raises(InputError, match=r"has no model\.layers\.9\.self_attn\.q_proj\.weight, for which an adapter"):
        dict(merge_lora(world / "base", strange, 2.0))


def test_weights_that_break_off_are_no_weights(engine, scorer, tmp_path):
    """The last test here: the engine is of no more use."""
    name, tensor = next(iter(scorer.model.named_parameters()))
    save_file({name: tensor.detach()}, tmp_path / "first.safetensors")
    before = engine.weight_version

    def files():
        yield tmp_path / "first.safetensors"
        raise OSError("the second piece is lost")

    with pytest.raises(
        PartialWeightUpdate, match=r"weights 99 were loaded partially: OSError\('the second piece is lost'\)"
    ):
        engine.load_weights(files(), 99)
    assert engine.weight_version == before
    with pytest.raises(OSError, match="nothing there"):
        engine.load_weights(_nothing(), 99)


def _nothing():
    raise OSError("nothing there")
    yield
