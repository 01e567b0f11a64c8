"""The parts of a run fit each other: what the configuration says to one of them, the others are told too."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from common.errors import InputError
from configs.load import load_config
from configs.routes import ScoreRoute
from controller import build
from controller.actor import Controller
from controller.inputs import read_inputs
from reward.scoring import ScoringConfig, score_groups
from speech.families import PLAYGROUND
from speech.grammar import allowed_masks, token_kinds
from speech.types import ReplyGroup
from tests.controller.examples import card, reply


@pytest.fixture
def configured(root, world):
    """Reads the shipped configuration, with changes."""

    def make(*overrides: str):
        return load_config(root / "configs" / "playground.yaml", [*overrides, f"model.path={world / 'base'}"])

    return make


@pytest.fixture
def built(monkeypatch):
    """What rollout pool and learner group are given, without starting any."""
    for name in ("RolloutPool", "LearnerGroup"):
        monkeypatch.setattr(build, name, lambda *given: given)

    def make(config, family=PLAYGROUND) -> SimpleNamespace:
        _, engine, *_ = build.rollout_pool(config, family, print)
        _, rank, *_ = build.learner_group(config, family, "x", None)
        return SimpleNamespace(engine=engine, rank=rank, sampling=build.sampling(config))

    return make


def test_sampler_and_learner_have_one_temperature(configured, built):
    """Method §7, rule 3."""
    parts = built(configured("rollout.temperature=0.7"))
    assert parts.sampling.temperature == parts.rank.temperature == 0.7


@pytest.mark.parametrize(
    ("setting", "follows", "held"),
    [("on", True, True), ("off", False, False), ("auto", False, True), ("auto", True, False)],
)
def test_the_learner_masks_what_the_sampler_masks_and_nothing_else(configured, built, setting, follows, held):
    """Method §7, rule 3."""
    config, family = (
        configured(f"rollout.constrained_decoding='{setting}'"),
        replace(PLAYGROUND, follows_pattern=follows),
    )
    inputs = replace(read_inputs(config), family=family)
    assert built(config, family).engine.constrained == held
    demonstration = inputs.demonstrations[0]
    ids, channels = demonstration.reply_ids, inputs.vocabulary.channels(demonstration.reply_ids)
    asked = ReplyGroup(prompt=inputs.prompts[0], replies=[reply(i, ids, channels) for i in range(2)])
    judged = score_groups(asked, [card(a=1.0), card(a=5.0)], ScoringConfig(total={"a": 1.0}), [ScoreRoute()])
    rows = build.preference(config, inputs).batch([asked], [judged], {}, [1.0]).items
    assert len(rows) == 2
    for row in rows:
        if held:
            kinds = token_kinds(inputs.vocabulary)
            assert row.allowed.tolist() == allowed_masks(ids, family.interleave, kinds).tolist()
        else:
            assert row.allowed is None


def test_frozen_parts_that_the_checkpoint_lacks_are_refused_before_anything_starts(configured, built):
    """Method §7, rule 7."""
    config = configured("model.freeze=[model.layers.0.*, encoder.*]")
    with pytest.raises(InputError, match=r"model\.freeze: 'encoder\.\*' matches no parameter"):
        read_inputs(config)
    config = configured("model.freeze=[model.layers.0.*]")
    read_inputs(config)
    assert built(config).rank.frozen == ("model.layers.0.*",)


def test_adapters_are_asked_of_the_learner_alone_and_their_layers_are_looked_up_beforehand(configured, built):
    assert built(configured()).rank.lora is None
    config = configured(
        "learner.lora={r: 4, lora_alpha: 8, target_modules: ['*.q_proj']}", "model.freeze=[model.layers.0.*]"
    )
    read_inputs(config)
    rank = built(config).rank
    assert (rank.lora.r, rank.lora.scale, rank.lora.target_modules) == (4, 2.0, ("*.q_proj",))
    config = configured("learner.lora.r=4", "learner.lora.target_modules=['*.q_proj', 'encoder.*']")
    with pytest.raises(InputError, match=r"learner\.lora\.target_modules: 'encoder\.\*' matches no linear layer"):
        read_inputs(config)


def test_the_settings_that_made_a_score_go_on_record(configured):
    """Method §7, rule 9."""
    config = configured("rollout.temperature=0.7", "rollout.max_new_tokens=90", "rollout.constrained_decoding='on'")
    versions = {"answer": "v3", "codec": "abc"}
    stand_in = SimpleNamespace(
        _config=config,
        _inputs=SimpleNamespace(family=PLAYGROUND),
        _running_loop=SimpleNamespace(rater_versions=versions),
    )
    made = Controller._provenance(stand_in)
    assert made.raters == versions
    assert made.sampling == {"temperature": "0.7", "top_p": "1", "top_k": "0", "max_tokens": "90", "structure": "on"}
