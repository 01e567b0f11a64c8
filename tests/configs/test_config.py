"""Reading a configuration: errors name the key that is unknown or out of range."""

import pytest

from common.errors import InputError
from configs.load import load_config
from configs.validate import batch_summary


@pytest.fixture
def playground(root):
    return root / "configs" / "playground.yaml"


def test_overrides_and_arithmetic(playground):
    config = load_config(playground, ["train.num_steps=3", "run.name=x", "run.seed=7", "rollout.batch_size=8"])
    assert (config.train.num_steps, config.run.name, config.run.seed) == (3, "x", 7)
    assert load_config(playground, ["rollout.constrained_decoding=off"]).rollout.constrained_decoding == "off"
    assert load_config(playground, ["rollout.constrained_decoding=on"]).rollout.constrained_decoding == "on"
    lines = dict(batch_summary(config))
    assert lines["replies an iteration"] == "8 prompts × 4 = 32"
    assert "rollout" in config.yaml()


def test_routes_can_be_replaced(playground):
    config = load_config(playground, ["algorithm.score_routing=[{score: heard, channel: speech, weight: 2}]"])
    assert [(r.score, r.channel, r.weight) for r in config.algorithm.score_routing] == [("heard", "speech", 2.0)]
    assert load_config(playground, ["algorithm.score_routing=[]"]).algorithm.score_routing == []


@pytest.mark.parametrize(
    ("preset", "table"),
    [
        ("wavalign", [("total", "text")]),
        ("full", [("total", "all")]),
        ("alpo", [("format", "format"), ("semantic", "words"), ("acoustic", "codes")]),
        ("anchor_only", []),
    ],
)
def test_presets_are_written_out_and_read_back(playground, tmp_path, preset, table):
    config = load_config(playground, [f"algorithm.score_routing={preset}"])
    assert [(r.score, r.channel) for r in config.algorithm.score_routing] == table
    (tmp_path / "again.yaml").write_text(config.yaml())
    assert load_config(tmp_path / "again.yaml", []) == config


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.num_step=3", r"unknown configuration key 'train.num_step'; did you mean 'train.num_steps'\?"),
        ("nonsense=1", "unknown configuration key 'nonsense'"),
        ("train.num_steps=many", "train.num_steps: .*'many'"),
        ("train.num_steps=0", "train.num_steps: 0 is too small"),
        ("run.name=../x", "run.name: '../x'"),
        ("rollout.n=1", "rollout.n: 1 is too small; at least 2"),
        ("rollout.num_workers=17", "rollout.num_workers: 17 workers cannot share rollout.batch_size = 16"),
        ("anchor.batch_size=1", "anchor.batch_size: 1 demonstrations cannot be split over learner.num_workers = 2"),
        ("rollout.temperature=0", "rollout.temperature: 0"),
        (
            "mix_ratio.schedule=sometimes",
            "mix_ratio.schedule: 'sometimes' is not allowed; choose from adaptive, fixed or two_stage",
        ),
        ("mix_ratio.max=1.5", r"mix_ratio.max: 1.5 is too large; at most 1"),
        ("reward.score_min=5", "reward.score_min: 5.0 must be below reward.score_max"),
        ("learner.zero_stage=4", "learner.zero_stage: 4"),
        ("algorithm.score_routing=[{channel: loud}]", "channel 'loud' is not allowed"),
        (
            "algorithm.score_routing=[{score: beauty}]",
            "algorithm.score_routing: nothing gives the score 'beauty'; allowed: total, semantic",
        ),
        ("reward.weights={beauty: 1}", "reward.weights: no reward function gives the score 'beauty'"),
        ("reward.weights={answer: 0}", "reward.weights"),
        ("reward.functions=[]", "reward.functions: empty"),
        ("reward.max_missing_rate=1.5", r"reward.max_missing_rate: 1.5 is too large; at most 1"),
        ("reward.missing_window=0", "reward.missing_window: 0 is too small; at least 1"),
        (
            "algorithm.score_routing=everything",
            "no preset is called 'everything'; presets: wavalign, full, alpo, anchor_only",
        ),
        ("algorithm.score_routing=3", "algorithm.score_routing: 3 is neither a preset's name nor a list"),
        ("algorithm.score_routing=[{score: total, chanel: text}]", "unknown key 'chanel'"),
        ("algorithm.score_routing=[{weight: -1}]", "weight -1.0 of total→text must be a positive number"),
        ("algorithm.score_routing=[{}, {weight: 2}]", "a route appears twice"),
        ("reward.composites.answer={heard: 1}", "reward.composites: 'answer' is already the name of a score"),
        ("reward.composites.x={beauty: 1}", "reward.composites.x: no reward function gives the score 'beauty'"),
        ("reward.aggregate=product", "reward.aggregate: 'product'"),
        ("run.stall_timeout_s=-1", r"run.stall_timeout_s: -1 is too small; at least 0"),
        ("mix_ratio.initial=2", r"mix_ratio.initial: 2 is too large; at most 1"),
        ("algorithm.dpo.score=beauty", "algorithm.dpo.score: nothing gives the score 'beauty'"),
        ("algorithm.dpo.pairs_file=x.parquet", "pairs from a file train with algorithm.name=dpo"),
        ("algorithm.score_routing=[{weight: .nan}]", "weight nan of total→text"),
        ("mix_ratio.gate_slope=0", "mix_ratio.gate_slope: 0 is too small"),
        ("algorithm.tis_cap=0.5", "algorithm.tis_cap: 0.5"),
        ("train.num_steps", "not of the form key=value"),
        ("metrics.port=70000", "metrics.port: 70000"),
    ],
)
def test_impossible_values(playground, override, complaint):
    with pytest.raises(InputError, match=complaint):
        load_config(playground, [override])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rollout.top_p=0.9", "rollout.top_p: 0.9 is too small; at least 1"),
        ("rollout.top_k=50", "rollout.top_k: 50 is too large; at most 0"),
        ("rollout.repetition_penalty=1.1", "unknown configuration key 'rollout.repetition_penalty'"),
    ],
)
def test_sampling_that_the_learner_cannot_score_is_rejected(playground, override, complaint):
    """Method §7, rule 3."""
    with pytest.raises(InputError, match=complaint):
        load_config(playground, [override])


def test_missing_file_broken_yaml_and_missing_value(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(tmp_path / "x.yaml", [])
    (tmp_path / "y.yaml").write_text("train: {num_steps: 3}")
    with pytest.raises(InputError, match=r"model\.path"):
        load_config(tmp_path / "y.yaml", [])


def test_a_file_can_change_another(playground, tmp_path):
    (tmp_path / "base.yaml").write_text(playground.read_text())
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ntrain: {num_steps: 7}\nanchor: {batch_size: 8}\n")
    config = load_config(tmp_path / "mine.yaml", ["anchor.batch_size=4"])
    assert (config.train.num_steps, config.anchor.batch_size, config.rollout.n) == (7, 4, 4)
    (tmp_path / "table.yaml").write_text("extends: base.yaml\nreward: {weights: {manner: 1}}\n")
    assert load_config(tmp_path / "table.yaml", []).reward.weights == {"manner": 1.0}, (
        "a table replaces, it does not mix"
    )
    assert load_config(playground, ["reward.weights={heard: 2}", "reward.weights.manner=1"]).reward.weights == {
        "heard": 2,
        "manner": 1,
    }
    (tmp_path / "sizes.yaml").write_text("train: {num_steps: 3}\nreward: {num_servers: 5, weights: {answer: 2}}\n")
    (tmp_path / "both.yaml").write_text("extends: [mine.yaml, sizes.yaml]\nanchor: {batch_size: 9}\n")
    both = load_config(tmp_path / "both.yaml", [])
    assert (both.train.num_steps, both.reward.num_servers, both.anchor.batch_size) == (3, 5, 9)
    assert both.reward.weights == {"answer": 2}
    (tmp_path / "lost.yaml").write_text("extends: none.yaml")
    with pytest.raises(InputError, match=r"none\.yaml, which .*lost\.yaml extends, does not exist"):
        load_config(tmp_path / "lost.yaml", [])
    (tmp_path / "loop.yaml").write_text("extends: loop.yaml")
    with pytest.raises(InputError, match="extends itself"):
        load_config(tmp_path / "loop.yaml", [])


def test_settings_that_do_not_go_together(playground):
    pairs = ["algorithm.name=dpo", "algorithm.dpo.pairs_file=x.parquet"]
    with pytest.raises(InputError, match="adaptive measures λ from rollouts"):
        load_config(playground, pairs)
    with pytest.raises(InputError, match="pairs from a file have their own"):
        load_config(playground, [*pairs, "mix_ratio.schedule=fixed", "algorithm.dpo.chosen_source=demonstration"])
    with pytest.raises(InputError, match="a harmonic mean needs positive scores"):
        load_config(playground, ["reward.aggregate=harmonic", "reward.score_min=0"])
