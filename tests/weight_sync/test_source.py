"""The weights that are sent, their names, and the sizes of groups."""

import torch
from torch import nn

from weight_sync.source import WeightSource, updated_parameters
from weight_sync.update import load_unit


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("q_proj", "k_proj", "o_proj")})
        self.mlp = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("gate_proj", "up_proj")})
        self.norm = nn.LayerNorm(4)


class Model(nn.Module):
    """Two layers with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "layers": nn.ModuleList([Layer(), Layer()])})
        self.lm_head = nn.Linear(4, 8, bias=False)
        self.lm_head.weight = self.model["embed"].weight


def frozen(*starts: str) -> Model:
    model = Model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(starts))
    return model


def test_a_unit_is_what_an_engine_may_fuse():
    assert load_unit("model.layers.3.self_attn.q_proj.weight") == load_unit("model.layers.3.self_attn.k_proj.bias")
    assert load_unit("model.layers.3.self_attn.q_proj.weight") != load_unit("model.layers.3.mlp.gate_proj.weight")
    assert load_unit("model.layers.3.mlp.experts.7.w1.weight") == load_unit("model.layers.3.mlp.experts.8.w2.weight")
    assert load_unit("model.layers.3.mlp.gate_proj.weight") != load_unit("model.layers.4.mlp.gate_proj.weight")
    assert load_unit("model.embed_tokens.weight") != load_unit("model.norm.weight")
    assert load_unit("tower.0.weight") == load_unit("tower.0.bias") == "tower.0"
    assert load_unit("lm_head.weight") == "lm_head"


def test_all_weights_are_sent_if_all_are_trained():
    model = frozen("nothing")
    assert set(updated_parameters(model)) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    assert "lm_head.weight" in updated_parameters(model)
    assert WeightSource(model, sharded=False).whole


def test_frozen_weights_are_not_sent_unless_the_engine_fuses_them_with_trained_ones():
    model = frozen("model.embed", "model.layers.0", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp")
    source = WeightSource(model, sharded=False)
    sent = {name for group in source for name in group}
    assert not source.whole
    attention = [f"self_attn.{part}.{kind}" for part in ("q_proj", "k_proj", "o_proj") for kind in ("weight", "bias")]
    assert sent == {f"model.layers.1.{name}" for name in [*attention, "norm.weight", "norm.bias"]}


def test_groups_match_their_metadata_and_are_small():
    model = frozen("nothing")
    source = WeightSource(model, sharded=False, group_bytes=300)
    found = {}
    for entries, group in zip(source.groups, source, strict=True):
        assert [(e.name, e.dtype, e.shape) for e in entries] == [(n, t.dtype, tuple(t.shape)) for n, t in group.items()]
        assert sum(entry.size for entry in entries) <= 300
        found |= group
    assert len(source.groups) > 3
    assert all(torch.equal(found[name], p) for name, p in model.named_parameters(remove_duplicate=False))
    [[first, second], *_] = WeightSource(model, sharded=False, group_bytes=10).groups
    assert {first.name, second.name} == {"model.embed.weight", "lm_head.weight"}  # larger, and alone
