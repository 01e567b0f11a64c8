"""Invalid configurations: each is rejected by key, and nothing is written."""

import copy
import math
import os

import pytest

from configs.load import load_config
from configs.schema import Config
from configs.validate import check_config, parse_value
from tests.bad_input.door import Setup, refused
from tests.configs.keys import LEAVES, NUMBERS

pytestmark = pytest.mark.timeout(60)

FREE = {
    "model.family", "data.encoder", "reward.codec.target", "reward.audio_quality_fn", "algorithm.dpo.score",
}  # fmt: skip
"""Texts of any content: checked when they are loaded."""

OVERRIDES = {
    "unknown section": ("trian.seed=1", "unknown configuration key 'trian"),
    "unknown key": ("learner.lr=1", "unknown configuration key 'learner.lr'"),
    "unknown key of a rater": ("reward.functions=[{name: a, target: 'a:B', weight: 1}]", "weight"),
    "no equals sign": ("run.seed", "not of the form key=value"),
    "no key": ("=3", "unknown configuration key ''"),
    "word for a number": ("rollout.batch_size=sixteen", "rollout.batch_size", "'sixteen'"),
    "fraction for a whole number": ("rollout.batch_size=1.5", "rollout.batch_size", "1.5"),
    "list for a number": ("rollout.batch_size=[16]", "rollout.batch_size"),
    "table for a number": ("rollout.batch_size={a: 1}", "rollout"),
    "nothing for a number": ("rollout.batch_size=null", "rollout.batch_size"),
    "number for a section": ("rollout=5", "rollout"),
    "list for a section": ("rollout=[1, 2]", "rollout"),
    "nothing for a section": ("rollout=null", "rollout"),
    "word for a truth value": ("rollout.engine_in_process=perhaps", "rollout.engine_in_process", "perhaps"),
    "open list": ("model.freeze=[a", "its override model.freeze=[a is not valid"),
    "5000 digits": (f"run.seed={'9' * 5000}", "mine.yaml"),
    "integer beyond floats": (f"learner.learning_rate={'9' * 400}", "learner.learning_rate"),
    "integer beyond 64 bits": (f"run.seed={10**30}", "run.seed", "at most 2147483647"),
    "interpolation to nowhere": ("run.directory='${nowhere.at.all}'", "run.directory"),
    "interpolation of itself": ("run.directory='${run.directory}'", "run.directory"),
    "negative timeout": ("rollout.generate_timeout_s=-1", "rollout.generate_timeout_s", "-1"),
    "no timeout": ("learner.step_timeout_s=0", "learner.step_timeout_s", "0 is too small; at least 0.001"),
    "timeout without end": ("reward.score_timeout_s=.inf", "reward.score_timeout_s", "inf"),
    "timeout that is no number": ("rollout.sync_timeout_s=.nan", "rollout.sync_timeout_s", "nan"),
    "learning rate that is no number": ("learner.learning_rate=.nan", "learner.learning_rate", "nan"),
    "negative CPUs": ("rollout.num_cpus=-1", "rollout.num_cpus", "-1"),
    "GPU and a half": ("learner.num_gpus=1.5", "learner.num_gpus: 1.5", "whole GPUs"),
    "beta of one": ("learner.betas=[0.9, 1.0]", "learner.betas", "1.0"),
    "negative beta": ("learner.betas=[-0.1, 0.9]", "learner.betas", "-0.1"),
    "three betas": ("learner.betas=[0.9, 0.9, 0.9]", "betas"),
    "no epsilon": ("learner.adam_eps=0", "learner.adam_eps"),
    "negative decay": ("learner.weight_decay=-0.1", "learner.weight_decay"),
    "negative gradient clip": ("learner.max_grad_norm=-1", "learner.max_grad_norm"),
    "no cache": ("rollout.cpu_kv_cache_gib=0", "rollout.cpu_kv_cache_gib"),
    "more than the GPU": ("rollout.gpu_memory_utilization=1.5", "rollout.gpu_memory_utilization", "at most 1"),
    "probe that never fails": ("weight_sync.max_logprob_diff=.inf", "weight_sync.max_logprob_diff"),
    "negative samples": ("validation.num_quality_samples=-1", "validation.num_quality_samples", "at least 0"),
    "length of nothing": ("model.max_model_len=0", "model.max_model_len"),
    "threshold of nothing": ("mix_ratio.gate_threshold=.nan", "mix_ratio.gate_threshold"),
    "slope without end": ("mix_ratio.gate_slope=.inf", "mix_ratio.gate_slope"),
    "highest score without end": ("reward.score_max=.inf", "reward.score_max"),
    "empty scale": ("reward.score_min=5", "reward.score_min: 5.0 must be below reward.score_max"),
    "anchor of nothing": ("anchor={text_weight: 0, speech_weight: 0}", "anchor.text_weight", "anchor.speech_weight"),
    "negative anchor": ("anchor.speech_weight=-1", "anchor.speech_weight: -1"),
    "anchor without end": ("anchor.text_weight=.inf", "anchor.text_weight"),
    "run name that climbs": ("run.name=../../x", "run.name", "'../../x'"),
    "run name of 200 letters": (f"run.name={'x' * 200}", "run.name"),
    "no run name": ("run.name=''", "run.name", "''"),
    "evaluation set that climbs": ("data.validation={'../x': a.parquet}", "data.validation", "'../x'"),
    "file name of 300 letters": (f"data.prompts={'x' * 300}", "data.prompts", "cannot be the name"),
    "file name with a null": ("data.prompts='a\\0b'", "data"),
    "no file name": ("data.sft=''", "data.sft", "empty"),
    "file that is a folder": ("data.prompts=/tmp", "/tmp does not exist"),
    "checkpoint that is no folder": ("model.path=/etc/passwd", "/etc/passwd is not a checkpoint"),
    "unknown family": ("model.family=opera", "model.family", "'opera'", "playground"),
    "unknown dtype": ("model.dtype=float64", "model.dtype", "'float64'", "float32 or bfloat16"),
    "number for a mode": ("mix_ratio.schedule=3", "mix_ratio.schedule", "3", "adaptive, fixed or two_stage"),
    "frozen part that is not there": ("model.freeze=[encoder.*]", "model.freeze", "'encoder.*'"),
    "everything frozen": ("model.freeze=['*']", "model.freeze", "nothing is left to train"),
    "adapters of negative rank": ("learner.lora.r=-1", "learner.lora.r: -1", "at least 0"),
    "adapters larger than a matrix": ("learner.lora.r=65", "learner.lora.r: 65", "k_proj", "at most 64"),
    "adapters of no layer": (
        "learner.lora={r: 4, target_modules: [expert*]}", "learner.lora.target_modules", "'expert*'",
    ),
    "adapters without a pattern": (
        "learner.lora={r: 4, target_modules: []}", "learner.lora.target_modules", "at least one",
    ),
    "adapters that count nothing": ("learner.lora={r: 4, lora_alpha: 0}", "learner.lora.lora_alpha"),
    "two raters of one name": (
        "reward={functions: [{name: a, target: 'playground.raters:Answer'}, {name: a, target: "
        "'playground.raters:Heard'}],"
        " weights: {a: 1}, composites: {}}",
        "reward.functions", "two are called", "'a'",
    ),
    "rater called total": ("reward.functions=[{name: total, target: 'a:B'}]", "reward.functions", "'total'"),
    "rater called codec": ("reward.functions=[{name: codec, target: 'a:B'}]", "reward.functions", "'codec'"),
    "rater with a line break": ("reward.functions=[{name: \"a\\nb\", target: 'a:B'}]", "reward.functions", r"'a\nb'"),
    "rater without a name": ("reward.functions=[{target: 'a:B'}]", "name"),
    "rater without a class": ("reward.functions=[{name: answer}]", "target"),
    "raters that are a table": ("reward.functions={answer: 1}", "reward.functions", "{answer: 1}"),
    "weight that is no number": ("reward.weights={answer: .nan}", "reward.weights"),
    "weight without end": ("reward.weights={answer: .inf}", "reward.weights"),
    "weight of a word": ("reward.weights={answer: much}", "reward.weights.answer", "much"),
    "negative weight": ("reward.weights={answer: 2, heard: -1}", "reward.weights"),
    "no weights": ("reward.weights={}", "reward.weights"),
    "score with a slash": ("reward.composites={a/b: {answer: 1}}", "reward.composites", "'a/b'"),
    "codec that is nowhere": ("reward.codec.target=nowhere:Codec", "reward.codec", "'nowhere:Codec'"),
    "codec of nothing": ("reward.codec.target=':'", "reward.codec"),
    "codec that is no codec": ("reward.codec.target=json:dumps", "reward.codec", "json:dumps"),
    "codec that is a number": ("reward.codec.target=math:pi", "reward.codec", "float"),
    "codec path that is a number": ("reward.codec.kwargs={path: 5}", "reward.codec.kwargs.path", "5"),
    "codec without a path": ("reward.codec.kwargs={}", "reward.codec.kwargs.path", "missing"),
    "codec with more": ("reward.codec.kwargs.rate=5", "reward.codec.kwargs", "'rate'", "allowed: path"),
    "codec of an empty folder": ("reward.codec.kwargs={path: /proc/self/fd}", "/proc/self/fd"),
    "signal that is nowhere": (
        "reward.audio_quality_fn=playground.recogniser:no", "reward.audio_quality_fn", "playground.recogniser:no",
    ),
    "signal that is no function": (
        "reward.audio_quality_fn=playground.recogniser:HEARING_RATE", "reward.audio_quality_fn", "int",
    ),
    "route to nowhere": ("algorithm.score_routing=[{channel: loud}]", "algorithm.score_routing", "'loud'"),
    "route of a word": ("algorithm.score_routing=[text]", "algorithm.score_routing", "'text'"),
    "route with strange keys": ("algorithm.score_routing=[{5: a, b: c}]", "algorithm.score_routing", "unknown key '5'"),
    "route beyond floats": (f"algorithm.score_routing=[{{weight: {'9' * 400}}}]", "algorithm.score_routing"),
    "host with a space": ("metrics.host='a b'", "metrics.host", "'a b'"),
    "no host": ("metrics.host=''", "metrics.host"),
    "host of dots": ("metrics.host=a..b", "metrics.host"),
    "port beyond ports": ("metrics.port=65536", "metrics.port", "at most 65535"),
    "cluster without a port": ("cluster.address='somewhere else'", "cluster.address", "HOST:PORT"),
    "more prompts than there are": ("rollout.batch_size=25", "rollout.batch_size: 25", "has only 24"),
    "prompts longer than the model": ("model.max_model_len=100", "model.max_model_len: 100 is too short"),
    "pairs that are not there": ("algorithm={name: dpo, dpo: {pairs_file: no.parquet}}", "mix_ratio.schedule"),
}  # fmt: skip
"""By name: an override, and what the error must mention."""


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
    "nothing": (b"", "model.path"),
    "spaces": (b"   \n\n", "model.path"),
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
    "an anchor in itself": (b"run: &a [*a]\n", "mine.yaml", "contains itself"),
    "an anchor that is not there": (b"run: *a\n", "mine.yaml", "not valid YAML"),
    "a billion laughs": (LAUGHS.encode(), "mine.yaml", "values when its anchors are expanded"),
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
"""By name: the bytes of a configuration file, and what the error must mention."""


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
    """A value beyond either end, or not finite, is rejected by key."""
    (low, high), (section, _, name) = NUMBERS[key], key.rpartition(".")
    for value in (low - 1, high + 1, -(10**12), 10**12, math.nan, math.inf, -math.inf):
        for place, one in {0: (value, 0.9), 1: (0.9, value)}.items() if key == "learner.betas" else [("", value)]:
            changed = copy.deepcopy(good)
            setattr(parse_value(changed, section), name, one)
            where = f"{key}[{place}]" if key == "learner.betas" else key
            refused(tmp_path, lambda config=changed: check_config(config), f"{where}: {value}")
    check_config(good)


def test_every_key_has_a_range_choices_or_a_check():
    """A key added to the configuration is given one, or said to be free here."""
    assert all(low is not None and high is not None for low, high in NUMBERS.values())
    words = {key for key, leaf in LEAVES.items() if leaf.type is str and not leaf.checked}
    assert words == FREE
