"""The configuration: what is unknown or impossible is named."""

import pytest

from common.errors import InputError
from configs.load import load_config
from configs.validate import batch_summary


@pytest.fixture
def playground(root):
    return root / "configs" / "playground.yaml"


def test_overrides_and_arithmetic(playground):
    config = load_config(playground, ["run.iterations=3", "run.name=x", "run.seed=7", "rollout.prompts=8"])
    assert (config.run.iterations, config.run.name, config.run.seed) == (3, "x", 7)
    assert load_config(playground, ["rollout.structure=off"]).rollout.structure == "off"
    assert load_config(playground, ["rollout.structure=on"]).rollout.structure == "on"
    lines = dict(batch_summary(config))
    assert lines["replies an iteration"] == "8 prompts × 4 = 32"
    assert "rollout" in config.yaml()


def test_routes_can_be_replaced(playground):
    config = load_config(playground, ["preference.routes=[{score: heard, channel: speech, weight: 2}]"])
    assert [(r.score, r.channel, r.weight) for r in config.preference.routes] == [("heard", "speech", 2.0)]
    assert load_config(playground, ["preference.routes=[]"]).preference.routes == []


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
    config = load_config(playground, [f"preference.routes={preset}"])
    assert [(r.score, r.channel) for r in config.preference.routes] == table
    (tmp_path / "again.yaml").write_text(config.yaml())
    assert load_config(tmp_path / "again.yaml", []) == config


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.itertions=3", r"unknown configuration key 'run.itertions'; did you mean 'run.iterations'\?"),
        ("nonsense=1", "unknown configuration key 'nonsense'"),
        ("run.iterations=many", "run.iterations: .*'many'"),
        ("run.iterations=0", "run.iterations: 0 is too small"),
        ("run.name=../x", "run.name: '../x'"),
        ("rollout.group_size=1", "rollout.group_size: 1 is too small; at least 2"),
        ("rollout.workers=17", "rollout.workers: 17 workers cannot share rollout.prompts = 16"),
        ("anchor.rows=1", "anchor.rows: 1 demonstrations cannot be split over learner.ranks = 2"),
        ("rollout.temperature=0", "rollout.temperature: 0"),
        ("mix.mode=sometimes", "mix.mode: 'sometimes' is not possible; allowed: adaptive, fixed, two_stage"),
        ("mix.largest=1.5", r"mix.largest: 1.5 is outside \[0, 1\]"),
        ("mix.lowest_score=5", "mix.lowest_score: 5.0 must be below mix.highest_score"),
        ("learner.zero_stage=4", "learner.zero_stage: 4"),
        ("preference.routes=[{channel: loud}]", "channel 'loud' is not possible"),
        (
            "preference.routes=[{score: beauty}]",
            "preference.routes: nothing gives the score 'beauty'; allowed: total, semantic",
        ),
        ("reward.total={beauty: 1}", "reward.total: no rater gives the score 'beauty'"),
        ("reward.total={answer: 0}", "reward.total"),
        ("reward.raters=[]", "reward.raters: no rater"),
        ("reward.missing_limit=1.5", r"reward.missing_limit: 1.5 is outside \[0, 1\]"),
        ("reward.missing_window=0", "reward.missing_window: 0 is too small; at least 1"),
        (
            "preference.routes=everything",
            "no preset is called 'everything'; presets: wavalign, full, alpo, anchor_only",
        ),
        ("preference.routes=3", "preference.routes: 3 is neither a preset's name nor a list"),
        ("preference.routes=[{score: total, chanel: text}]", "unknown key 'chanel'"),
        ("preference.routes=[{weight: -1}]", "weight -1.0 of total→text must be a positive number"),
        ("preference.routes=[{}, {weight: 2}]", "a route appears twice"),
        ("reward.scores.answer={heard: 1}", "reward.scores: 'answer' is already the name of a score"),
        ("reward.scores.x={beauty: 1}", "reward.scores.x: no rater gives the score 'beauty'"),
        ("reward.combine=product", "reward.combine: 'product'"),
        ("run.stall_seconds=-1", r"run.stall_seconds: -1.0 is outside \[0, 604800\]"),
        ("mix.first=2", r"mix.first: 2.0 is outside \[0, 1\]"),
        ("preference.pairs.score=beauty", "preference.pairs.score: nothing gives the score 'beauty'"),
        ("preference.pairs.file=x.parquet", "pairs from a file train with preference.objective=dpo"),
        ("preference.routes=[{weight: .nan}]", "weight nan of total→text"),
        ("mix.slope=0", "mix.slope: 0.0 is too small"),
        ("preference.importance_cap=0.5", "preference.importance_cap: 0.5"),
        ("run.iterations", "not of the form key=value"),
        ("metrics.port=70000", "metrics.port: 70000"),
    ],
)
def test_impossible_values(playground, override, complaint):
    with pytest.raises(InputError, match=complaint):
        load_config(playground, [override])


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("rollout.top_p=0.9", "rollout.top_p: 0.9 is not possible; allowed: 1.0"),
        ("rollout.top_k=50", "rollout.top_k: 50 is not possible; allowed: 0"),
        ("rollout.repetition_penalty=1.1", "unknown configuration key 'rollout.repetition_penalty'"),
    ],
)
def test_what_the_learner_could_not_score_is_not_sampled(playground, override, complaint):
    """Method §7, rule 3."""
    with pytest.raises(InputError, match=complaint):
        load_config(playground, [override])


def test_missing_file_broken_yaml_and_missing_value(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_config(tmp_path / "none.yaml", [])
    (tmp_path / "x.yaml").write_text("a: [")
    with pytest.raises(InputError, match="not valid YAML"):
        load_config(tmp_path / "x.yaml", [])
    (tmp_path / "y.yaml").write_text("run: {iterations: 3}")
    with pytest.raises(InputError, match=r"model\.checkpoint"):
        load_config(tmp_path / "y.yaml", [])


def test_a_file_can_change_another(playground, tmp_path):
    (tmp_path / "base.yaml").write_text(playground.read_text())
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nrun: {iterations: 7}\nanchor: {rows: 8}\n")
    config = load_config(tmp_path / "mine.yaml", ["anchor.rows=4"])
    assert (config.run.iterations, config.anchor.rows, config.rollout.group_size) == (7, 4, 4)
    (tmp_path / "table.yaml").write_text("extends: base.yaml\nreward: {total: {manner: 1}}\n")
    assert load_config(tmp_path / "table.yaml", []).reward.total == {"manner": 1.0}, "a table replaces, it does not mix"
    assert load_config(playground, ["reward.total={heard: 2}", "reward.total.manner=1"]).reward.total == {
        "heard": 2,
        "manner": 1,
    }
    (tmp_path / "sizes.yaml").write_text("run: {iterations: 3}\nreward: {servers: 5, total: {answer: 2}}\n")
    (tmp_path / "both.yaml").write_text("extends: [mine.yaml, sizes.yaml]\nanchor: {rows: 9}\n")
    both = load_config(tmp_path / "both.yaml", [])
    assert (both.run.iterations, both.reward.servers, both.anchor.rows) == (3, 5, 9)
    assert both.reward.total == {"answer": 2}
    (tmp_path / "lost.yaml").write_text("extends: none.yaml")
    with pytest.raises(InputError, match=r"none\.yaml, which .*lost\.yaml extends, does not exist"):
        load_config(tmp_path / "lost.yaml", [])
    (tmp_path / "loop.yaml").write_text("extends: loop.yaml")
    with pytest.raises(InputError, match="extends itself"):
        load_config(tmp_path / "loop.yaml", [])


def test_settings_that_do_not_go_together(playground):
    pairs = ["preference.objective=dpo", "preference.pairs.file=x.parquet"]
    with pytest.raises(InputError, match="adaptive measures λ from rollouts"):
        load_config(playground, pairs)
    with pytest.raises(InputError, match="pairs from a file have theirs"):
        load_config(playground, [*pairs, "mix.mode=fixed", "preference.pairs.chosen=demonstration"])
    with pytest.raises(InputError, match="a harmonic mean needs positive scores"):
        load_config(playground, ["reward.combine=harmonic", "mix.lowest_score=0"])
