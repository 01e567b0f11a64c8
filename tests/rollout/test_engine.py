"""The real vLLM engine: what it samples, what it reports, and that it takes new weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from cluster.parcel import Parcel
from learner.rows import Row, collate
from learner.scorer import Scorer
from learner.send import DirectorySender
from learner.source import Source, named_weights
from rollout.engine import Engine, HalfTaken, SamplingSettings
from speech.families import PLAYGROUND
from speech.interleave import allowed_sets, kind_table
from speech.records import Finish, read_prompts
from speech.vocabulary import Vocabulary
from tests.rollout.examples import engine_settings

SAMPLING = SamplingSettings(temperature=0.8, max_tokens=96)
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def prompts(world, vocabulary):
    return read_prompts(world / "data/train.parquet", vocabulary)[:64]


@pytest.fixture(scope="module")
def engine(world, vocabulary) -> Engine:
    settings = engine_settings(world)
    return Engine(settings, PLAYGROUND, vocabulary, seed=0)


@pytest.fixture(scope="module")
def groups(engine, prompts):
    return engine.sample(prompts, 4, SAMPLING, list(range(0, 4 * len(prompts), 4)), "w")


@pytest.fixture
def scorer(world, vocabulary) -> Scorer:
    model = AutoModelForCausalLM.from_pretrained(world / "base", dtype=torch.float32).eval()
    return Scorer(model, torch.from_numpy(kind_table(vocabulary)))


def gap(group, scorer, vocabulary) -> float:
    """Largest difference between what the sampler reported and what the learner computes, over a group."""
    kinds = kind_table(vocabulary)
    rows = [
        Row(
            prompt_ids=group.prompt.token_ids,
            reply_ids=r.token_ids,
            channels=r.channels,
            allowed=allowed_sets(r.token_ids, PLAYGROUND.interleave, kinds),
            behaviour=r.logps,
            advantages=(0.0,),
            weights=(1.0,),
        )
        for r in group.replies
    ]
    batch = collate(rows, pad=vocabulary.pad, routes=1, temperature=SAMPLING.temperature, device=torch.device("cpu"))
    with torch.no_grad():
        logp, _ = scorer(batch.input_ids, batch.sources, batch.targets, batch.allowed, batch.temperatures)
    return (batch.dense(logp) - batch.behaviour).abs().max().item()


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
    again = engine.sample(prompts[:4], 4, SAMPLING, list(range(0, 16, 4)), "w")
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
    [group] = engine.sample(prompts[:1], 4, SAMPLING, [0], "w")
    assert group.replies[0].weight_version == 5
    assert gap(group, scorer, vocabulary) < 1e-4


def test_layers_that_are_not_sent_keep_their_weights(engine, prompts, scorer, vocabulary, tmp_path):
    """A model of which parts are frozen: what travels is what can have changed, and what the engine fuses with it."""
    sender = DirectorySender(tmp_path / "weights")

    def load(version: int) -> Parcel:
        source = Source(scorer.model, sharded=False, group_bytes=1 << 18)
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
    [group] = engine.sample(prompts[:1], 4, SAMPLING, [0], "w")
    assert group.replies[0].weight_version == 7
    assert gap(group, scorer, vocabulary) < 1e-4


def test_weights_that_break_off_are_no_weights(engine, scorer, tmp_path):
    """The last test here: the engine is of no more use."""
    name, tensor = next(iter(scorer.model.named_parameters()))
    save_file({name: tensor.detach()}, tmp_path / "first.safetensors")
    before = engine.weight_version

    def files():
        yield tmp_path / "first.safetensors"
        raise OSError("the second piece is lost")

    with pytest.raises(HalfTaken, match=r"weights 99 were not taken to the end: OSError\('the second piece is lost'\)"):
        engine.load_weights(files(), 99)
    assert engine.weight_version == before
    with pytest.raises(OSError, match="nothing there"):
        engine.load_weights(_nothing(), 99)


def _nothing():
    raise OSError("nothing there")
    yield
