"""Configurations that no run could use: each is refused by name, and nothing is written."""

import math
import os
from dataclasses import fields, is_dataclass

import pytest

from configs.load import load_config
from configs.schema import CHOICES, NUMBERS, PATHS, Config
from configs.validate import check_config, parse_value
from tests.bad_input.door import Setup, refused

pytestmark = pytest.mark.timeout(60)

FREE = {
    "run.name", "model.family", "data.encoder", "reward.codec.use", "reward.signal", "preference.pairs.score",
    "metrics.host", "cluster.address",
}  # fmt: skip
"""Words with checks of their own."""

OVERRIDES = {
    "unknown section": ("trian.seed=1", "unknown configuration key 'trian"),
    "unknown key": ("learner.lr=1", "unknown configuration key 'learner.lr'"),
    "unknown key of a rater": ("reward.raters=[{name: a, use: 'a:B', weight: 1}]", "weight"),
    "no equals sign": ("run.seed", "not of the form key=value"),
    "no key": ("=3", "unknown configuration key ''"),
    "word for a number": ("rollout.prompts=sixteen", "rollout.prompts", "'sixteen'"),
    "fraction for a whole number": ("rollout.prompts=1.5", "rollout.prompts", "1.5"),
    "list for a number": ("rollout.prompts=[16]", "rollout.prompts"),
    "table for a number": ("rollout.prompts={a: 1}", "rollout"),
    "nothing for a number": ("rollout.prompts=null", "rollout.prompts"),
    "number for a section": ("rollout=5", "rollout"),
    "list for a section": ("rollout=[1, 2]", "rollout"),
    "nothing for a section": ("rollout=null", "rollout"),
    "word for a truth value": ("rollout.in_process=perhaps", "rollout.in_process", "perhaps"),
    "open list": ("model.frozen=[a", "its override model.frozen=[a is not valid"),
    "5000 digits": (f"run.seed={'9' * 5000}", "mine.yaml"),
    "integer beyond floats": (f"learner.learning_rate={'9' * 400}", "mine.yaml"),
    "integer beyond 64 bits": (f"run.seed={10**30}", "run.seed", "at most 2147483647"),
    "interpolation to nowhere": ("run.directory='${nowhere.at.all}'", "run.directory"),
    "interpolation of itself": ("run.directory='${run.directory}'", "run.directory"),
    "negative timeout": ("rollout.sample_seconds=-1", "rollout.sample_seconds", "-1"),
    "no timeout": ("learner.step_seconds=0", "learner.step_seconds", "[0.001, "),
    "timeout without end": ("reward.score_seconds=.inf", "reward.score_seconds", "inf"),
    "timeout that is no number": ("rollout.sync_seconds=.nan", "rollout.sync_seconds", "nan"),
    "learning rate that is no number": ("learner.learning_rate=.nan", "learner.learning_rate", "nan"),
    "negative CPUs": ("rollout.cpus=-1", "rollout.cpus", "-1"),
    "GPU and a half": ("learner.gpus=1.5", "learner.gpus: 1.5", "whole GPUs"),
    "beta of one": ("learner.betas=[0.9, 1.0]", "learner.betas", "1.0"),
    "negative beta": ("learner.betas=[-0.1, 0.9]", "learner.betas", "-0.1"),
    "three betas": ("learner.betas=[0.9, 0.9, 0.9]", "betas"),
    "no epsilon": ("learner.epsilon=0", "learner.epsilon"),
    "negative decay": ("learner.weight_decay=-0.1", "learner.weight_decay"),
    "negative gradient clip": ("learner.gradient_clip=-1", "learner.gradient_clip"),
    "no cache": ("rollout.kv_cache_gib=0", "rollout.kv_cache_gib"),
    "more than the GPU": ("rollout.gpu_memory_share=1.5", "rollout.gpu_memory_share", "[0.01, 1]"),
    "probe that never fails": ("rollout.probe_limit=.inf", "rollout.probe_limit"),
    "negative samples": ("evaluation.signal_samples=-1", "evaluation.signal_samples", "at least 0"),
    "length of nothing": ("model.max_length=0", "model.max_length"),
    "threshold of nothing": ("mix.threshold=.nan", "mix.threshold"),
    "slope without end": ("mix.slope=.inf", "mix.slope"),
    "highest score without end": ("mix.highest_score=.inf", "mix.highest_score"),
    "empty scale": ("mix.lowest_score=5", "mix.lowest_score: 5.0 must be below mix.highest_score"),
    "anchor of nothing": ("anchor={weight_text: 0, weight_speech: 0}", "anchor.weight_text", "anchor.weight_speech"),
    "negative anchor": ("anchor.weight_speech=-1", "anchor.weight_speech: -1"),
    "anchor without end": ("anchor.weight_text=.inf", "anchor.weight_text"),
    "run name that climbs": ("run.name=../../x", "run.name", "'../../x'"),
    "run name of 200 letters": (f"run.name={'x' * 200}", "run.name"),
    "no run name": ("run.name=''", "run.name", "''"),
    "evaluation set that climbs": ("data.held_out={'../x': a.parquet}", "data.held_out", "'../x'"),
    "file name of 300 letters": (f"data.prompts={'x' * 300}", "data.prompts", "cannot be the name"),
    "file name with a null": ("data.prompts='a\\0b'", "data"),
    "no file name": ("data.demonstrations=''", "data.demonstrations", "empty"),
    "file that is a folder": ("data.prompts=/tmp", "/tmp does not exist"),
    "checkpoint that is no folder": ("model.checkpoint=/etc/passwd", "/etc/passwd is not a checkpoint"),
    "unknown family": ("model.family=opera", "model.family", "'opera'", "playground"),
    "unknown dtype": ("model.dtype=float64", "model.dtype", "'float64'", "float32, bfloat16"),
    "number for a mode": ("mix.mode=3", "mix.mode", "'3'", "adaptive, fixed, two_stage"),
    "frozen part that is not there": ("model.frozen=[encoder.*]", "model.frozen", "'encoder.*'"),
    "everything frozen": ("model.frozen=['*']", "model.frozen", "nothing is left to train"),
    "adapters of negative rank": ("learner.lora.rank=-1", "learner.lora.rank: -1", "at least 0"),
    "adapters larger than a matrix": ("learner.lora.rank=65", "learner.lora.rank: 65", "k_proj", "at most 64"),
    "adapters of no layer": ("learner.lora={rank: 4, targets: [expert*]}", "learner.lora.targets", "'expert*'"),
    "adapters without a pattern": ("learner.lora={rank: 4, targets: []}", "learner.lora.targets", "at least one"),
    "adapters that count nothing": ("learner.lora={rank: 4, alpha: 0}", "learner.lora.alpha"),
    "two raters of one name": (
        "reward={raters: [{name: a, use: 'playground.raters:Answer'}, {name: a, use: 'playground.raters:Heard'}],"
        " total: {a: 1}, scores: {}}",
        "reward.raters", "two raters", "'a'",
    ),
    "rater called total": ("reward.raters=[{name: total, use: 'a:B'}]", "reward.raters", "'total'"),
    "rater called codec": ("reward.raters=[{name: codec, use: 'a:B'}]", "reward.raters", "'codec'"),
    "rater with a line break": ("reward.raters=[{name: \"a\\nb\", use: 'a:B'}]", "reward.raters", r"'a\nb'"),
    "rater without a name": ("reward.raters=[{use: 'a:B'}]", "name"),
    "rater without a class": ("reward.raters=[{name: answer}]", "use"),
    "raters that are a table": ("reward.raters={answer: 1}", "reward.raters", "{answer: 1}"),
    "weight that is no number": ("reward.total={answer: .nan}", "reward.total"),
    "weight without end": ("reward.total={answer: .inf}", "reward.total"),
    "weight of a word": ("reward.total={answer: much}", "reward.total.answer", "much"),
    "negative weight": ("reward.total={answer: 2, heard: -1}", "reward.total"),
    "no weights": ("reward.total={}", "reward.total"),
    "score with a slash": ("reward.scores={a/b: {answer: 1}}", "reward.scores", "'a/b'"),
    "codec that is nowhere": ("reward.codec.use=nowhere:Codec", "reward.codec", "'nowhere:Codec'"),
    "codec of nothing": ("reward.codec.use=':'", "reward.codec"),
    "codec that is no codec": ("reward.codec.use=json:dumps", "reward.codec", "json:dumps"),
    "codec that is a number": ("reward.codec.use=math:pi", "reward.codec", "float"),
    "codec path that is a number": ("reward.codec.arguments={path: 5}", "reward.codec.arguments.path", "5"),
    "codec without a path": ("reward.codec.arguments={}", "reward.codec.arguments.path", "missing"),
    "codec with more": ("reward.codec.arguments.rate=5", "reward.codec.arguments", "'rate'", "allowed: path"),
    "codec of an empty folder": ("reward.codec.arguments={path: /proc/self/fd}", "/proc/self/fd"),
    "signal that is nowhere": ("reward.signal=playground.recogniser:no", "reward.signal", "playground.recogniser:no"),
    "signal that is no function": ("reward.signal=playground.recogniser:HEARING_RATE", "reward.signal", "int"),
    "route to nowhere": ("preference.routes=[{channel: loud}]", "preference.routes", "'loud'"),
    "route of a word": ("preference.routes=[text]", "preference.routes", "'text'"),
    "route with strange keys": ("preference.routes=[{5: a, b: c}]", "preference.routes", "unknown key '5'"),
    "route beyond floats": (f"preference.routes=[{{weight: {'9' * 400}}}]", "preference.routes"),
    "host with a space": ("metrics.host='a b'", "metrics.host", "'a b'"),
    "no host": ("metrics.host=''", "metrics.host"),
    "host of dots": ("metrics.host=a..b", "metrics.host"),
    "port beyond ports": ("metrics.port=65536", "metrics.port", "[0, 65535]"),
    "cluster without a port": ("cluster.address='somewhere else'", "cluster.address", "HOST:PORT"),
    "more prompts than there are": ("rollout.prompts=25", "rollout.prompts: 25", "has only 24"),
    "prompts longer than the model": ("model.max_length=100", "model.max_length: 100 is too short"),
    "pairs that are not there": ("preference={objective: dpo, pairs: {file: no.parquet}}", "mix.mode"),
}  # fmt: skip
"""By name: an override, and what must be said of it."""


@pytest.fixture(scope="module")
def good(root) -> Config:
    return load_config(root / "configs/playground.yaml", [])


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides(setup: Setup, name: str):
    override, *mentions = OVERRIDES[name]
    refused(setup.folder, lambda: setup.enter(override), *mentions)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)
)
FILES = {
    "nothing": (b"", "model.checkpoint"),
    "spaces": (b"   \n\n", "model.checkpoint"),
    "a word": (b"hello", "unknown configuration key 'hello'"),
    "a number": (b"42", "mine.yaml"),
    "a list": (b"- run\n- model\n", "mine.yaml", "expected sections"),
    "two documents": (b"run: {}\n---\nmodel: {}\n", "mine.yaml", "not valid YAML"),
    "a tab": (b"run:\n\tseed: 1\n", "mine.yaml", "not valid YAML"),
    "half a line": (b"run: {seed: ", "mine.yaml", "not valid YAML"),
    "a key twice": (b"run: {seed: 1}\nrun: {seed: 2}\n", "mine.yaml", "duplicate"),
    "bytes": (bytes(range(256)), "mine.yaml", "UTF-8"),
    "Latin-1": ("run: {name: Überlauf}".encode("latin-1"), "mine.yaml", "UTF-8"),
    "a null byte": (b"run: {name: 'a\0b'}", "mine.yaml", "not valid YAML"),
    "an object of Python": (b"run: !!python/object/apply:os.system ['false']\n", "mine.yaml", "not valid YAML"),
    "an anchor in itself": (b"run: &a [*a]\n", "mine.yaml", "holds itself"),
    "an anchor that is not there": (b"run: *a\n", "mine.yaml", "not valid YAML"),
    "a billion laughs": (LAUGHS.encode(), "mine.yaml", "values when its anchors are written out"),
    "1000 brackets": (b"run: " + b"[" * 1000 + b"]" * 1000, "mine.yaml"),
    "two megabytes": (b"# " + b"x" * (2 << 20), "mine.yaml", "at most 1,048,576"),
    "extends a number": (b"extends: [mine.yaml, 5]\n", "mine.yaml", "extends must be the name of a file"),
    "extends nothing that is there": (b"extends: none.yaml\n", "none.yaml, which", "does not exist"),
    "extends itself": (b"extends: mine.yaml\n", "mine.yaml extends itself"),
    "extends a name of 300": (b"extends: " + b"x" * 300, "does not exist"),
    "extends a folder": (b"extends: .\n", "does not exist"),
    "a section over a list": (b"extends: list.yaml\nrun: {seed: 1}\n", "does not fit the file that it extends"),
    "keys that are numbers": (b"1: {2: 3}\n", "unknown configuration key '1'"),
}  # fmt: skip
"""By name: the bytes of a configuration file, and what must be said of it."""


@pytest.mark.parametrize("name", FILES)
def test_files(setup: Setup, name: str):
    content, *mentions = FILES[name]
    setup.config.write_bytes(content)
    (setup.folder / "list.yaml").write_text("run: [hello]\n")
    refused(setup.folder, setup.enter, *mentions)


def test_files_that_extend_each_other_in_a_ring_and_without_end(setup):
    for number in range(40):
        (setup.folder / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    refused(setup.folder, lambda: setup.enter(config=setup.folder / "0.yaml"), "extends more than 20 files")
    (setup.folder / "3.yaml").write_text("extends: 1.yaml\n")
    refused(setup.folder, lambda: setup.enter(config=setup.folder / "0.yaml"), "1.yaml extends itself")


def test_what_is_no_file_is_not_waited_for(setup):
    os.mkfifo(setup.folder / "pipe.yaml")
    refused(setup.folder, lambda: setup.enter(config=setup.folder / "pipe.yaml"), "pipe.yaml does not exist")
    os.mkfifo(setup.folder / "pipe.parquet")
    refused(setup.folder, lambda: setup.enter(f"data.prompts={setup.folder}/pipe.parquet"), "does not exist")


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_two_ends(good: Config, tmp_path, key: str):
    """What is beyond either end, or is no number, is refused by name."""
    bound, (section, _, name) = NUMBERS[key], key.rpartition(".")
    for value in (bound.low - 1, bound.high + 1, -(10**12), 10**12, math.nan, math.inf, -math.inf):
        for one in [(0.9, value), (value, 0.9)] if key == "learner.betas" else [value]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(parse_value(good, section), name, one)
                refused(tmp_path, lambda: check_config(good), f"{key}: {value}")
    check_config(good)


def test_every_key_has_a_bound_a_choice_or_a_check():
    """A key added to the configuration is given one here, or said to be free."""

    def leaves(kind, prefix=""):
        for f in fields(kind):
            if is_dataclass(f.default_factory):
                yield from leaves(f.default_factory, f"{prefix}{f.name}.")
            else:
                yield prefix + f.name, f.type

    kinds = dict(leaves(Config))
    numbers = {
        key for key, kind in kinds.items() if kind in (int, float, float | None, int | None, tuple[float, float])
    }
    words = {key for key, kind in kinds.items() if kind is str}
    assert numbers <= NUMBERS.keys() | CHOICES.keys()
    assert words <= CHOICES.keys() | set(PATHS) | FREE
    assert kinds.keys() >= NUMBERS.keys() | CHOICES.keys() | set(PATHS) | FREE
