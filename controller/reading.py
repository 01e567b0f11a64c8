"""Reads a configuration through OmegaConf and refuses what no run could use.

Importable without torch. Every refusal is an InputError naming the key, the value and what is allowed.
"""

import difflib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from controller.config import Config
from controller.mix import MODES
from controller.routing import resolve
from controller.statistics import ADVANTAGES, COMBINATIONS
from speech.errors import InputError

TABLES = ("data.held_out", "reward.total", "reward.scores", "reward.codec.arguments")
"""Keys whose value is a table of the user's own names."""
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read(path: Path, overrides: list[str]) -> Config:
    """Reads a YAML file, applies `key=value` overrides, and checks the whole.

    A file may name another, relative to itself, that it changes: `extends: playground.yaml`.
    """
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r} is not of the form key=value")
    try:
        given = load(path)
        for override in overrides:
            name = override.partition("=")[0]
            part = OmegaConf.from_dotlist([override])
            given = _upon(given, part) if name in TABLES else OmegaConf.merge(given, part)
    except InputError:
        raise
    except Exception as error:  # what OmegaConf raises comes in many classes
        raise InputError(f"{path}: its overrides are not valid: {' '.join(str(error).split())}") from error
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), given)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        raise InputError(f"unknown configuration key {key!r}{_suggestion(key)}") from error
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else f"{path} with its overrides: "
        raise InputError(place + str(error.msg or error).splitlines()[0]) from error
    assert isinstance(config, Config)
    # YAML reads a bare on or off as a truth value.
    config.rollout.structure = {"True": "on", "False": "off"}.get(config.rollout.structure, config.rollout.structure)
    check(config)
    return config


def load(path: Path, below: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file upon the one that it extends, not checked. below: the files that led here. Raises InputError."""
    path = path.resolve()
    if path in below:
        raise InputError(f"{path} extends itself, by way of {' → '.join(p.name for p in below)}")
    if not path.is_file():
        named = f", which {below[-1]} extends," if below else ""
        raise InputError(f"configuration file {path}{named} does not exist")
    try:
        own = OmegaConf.load(path)
    except Exception as error:  # YAML errors come in many classes
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(own, DictConfig):
        raise InputError(f"{path}: expected sections such as `run:` and `model:`, found a {type(own).__name__}")
    base = own.pop("extends", None)
    return own if base is None else _upon(load(path.parent / str(base), (*below, path)), own)


def _upon(base: Any, own: Any) -> Any:
    """`own` merged over `base`; a table of names and values replaces the one below it as a whole."""
    for key in TABLES:
        if OmegaConf.select(own, key) is not None and OmegaConf.select(base, key) is not None:
            OmegaConf.update(base, key, {}, merge=False)
    return OmegaConf.merge(base, own)


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, _keys(Config), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; sections are {', '.join(f.name for f in fields(Config))}"


def _keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for f in fields(kind):
        keys.append(prefix + f.name)
        if isinstance(f.default_factory, type) and hasattr(f.default_factory, "__dataclass_fields__"):
            keys += _keys(f.default_factory, f"{prefix}{f.name}.")
    return keys


def check(config: Config) -> None:
    """Raises InputError for values that no run could use."""
    c = config
    if c.run.name != "auto" and not RUN_NAME.fullmatch(c.run.name):
        raise InputError(
            f"run.name: {c.run.name!r} may hold letters, digits, '.', '_' and '-', and starts with one of the first two"
        )
    choices = {
        "model.dtype": (c.model.dtype, ("float32", "bfloat16")),
        "rollout.structure": (c.rollout.structure, ("auto", "on", "off")),
        "mix.mode": (c.mix.mode, MODES),
        "reward.combine": (c.reward.combine, COMBINATIONS),
        "preference.objective": (c.preference.objective, ("grpo", "dpo")),
        "preference.advantage": (c.preference.advantage, ADVANTAGES),
        "preference.average": (c.preference.average, ("reply", "token", "constant")),
        "preference.ratio": (c.preference.ratio, ("truncated", "behaviour", "one")),
        "preference.boundary": (c.preference.boundary, ("speech", "text")),
        "preference.pairs.channel": (c.preference.pairs.channel, ("text", "speech", "all")),
        "preference.pairs.chosen": (c.preference.pairs.chosen, ("sample", "demonstration")),
        "learner.zero_stage": (c.learner.zero_stage, (0, 1, 2, 3)),
        "rollout.top_p": (c.rollout.top_p, (1.0,)),
        "rollout.top_k": (c.rollout.top_k, (0,)),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(f"{key}: {value!r} is not possible; allowed: {', '.join(map(str, allowed))}")
    least = {
        "run.iterations": (c.run.iterations, 1),
        "run.seed": (c.run.seed, 0),
        "run.checkpoint_every": (c.run.checkpoint_every, 0),
        "rollout.workers": (c.rollout.workers, 1),
        "rollout.prompts": (c.rollout.prompts, 1),
        "rollout.group_size": (c.rollout.group_size, 2),
        "rollout.max_tokens": (c.rollout.max_tokens, 1),
        "rollout.threads": (c.rollout.threads, 1),
        "rollout.max_sequences": (c.rollout.max_sequences, 1),
        "rollout.tensor_parallel": (c.rollout.tensor_parallel, 1),
        "reward.servers": (c.reward.servers, 1),
        "learner.threads": (c.learner.threads, 1),
        "learner.warmup": (c.learner.warmup, 0),
        "mix.switch": (c.mix.switch, 0),
        "preference.constant": (c.preference.constant, 0),
        "evaluation.recordings": (c.evaluation.recordings, 0),
        "learner.ranks": (c.learner.ranks, 1),
        "learner.micro_batch_rows": (c.learner.micro_batch_rows, 1),
        "anchor.rows": (c.anchor.rows, 1),
    }
    for key, (value, lowest) in least.items():
        if value < lowest:
            raise InputError(f"{key}: {value} is too small; at least {lowest}")
    ranges: dict[str, tuple[float | None, float, float]] = {
        "rollout.temperature": (c.rollout.temperature, 1e-2, 10.0),
        "mix.fixed": (c.mix.fixed, 0.0, 1.0),
        "mix.largest": (c.mix.largest, 0.0, 1.0),
        "mix.smoothing": (c.mix.smoothing, 0.0, 0.9999),
        "mix.first": (c.mix.first, 0.0, 1.0),
        "preference.clip": (c.preference.clip, 0.0, 1.0),
        "preference.clip_high": (c.preference.clip_high, 0.0, 10.0),
        "preference.importance_cap": (c.preference.importance_cap, 1.0, 1000.0),
        "preference.pairs.beta": (c.preference.pairs.beta, 1e-6, 1000.0),
        "preference.pairs.margin": (c.preference.pairs.margin, 0.0, 1000.0),
        "preference.kl_text": (c.preference.kl_text, 0.0, 100.0),
        "preference.kl_speech": (c.preference.kl_speech, 0.0, 100.0),
        "learner.learning_rate": (c.learner.learning_rate, 0.0, 1.0),
        "learner.final_rate": (c.learner.final_rate, 0.0, 1.0),
        "metrics.port": (c.metrics.port, 0, 65535),
    }
    for key, (number, low, high) in ranges.items():
        if number is not None and not low <= number <= high:
            raise InputError(f"{key}: {number} is outside [{low:g}, {high:g}]")
    if c.mix.slope <= 0:
        raise InputError(f"mix.slope: {c.mix.slope} must be above 0")
    if c.reward.combine == "harmonic" and c.mix.lowest_score <= 0:
        raise InputError(
            f"reward.combine: a harmonic mean needs positive scores, and mix.lowest_score is {c.mix.lowest_score}"
        )
    if c.mix.lowest_score >= c.mix.highest_score:
        raise InputError(
            f"mix.lowest_score: {c.mix.lowest_score} must be below mix.highest_score, {c.mix.highest_score}"
        )
    if c.anchor.rows < c.learner.ranks:
        raise InputError(
            f"anchor.rows: {c.anchor.rows} demonstrations cannot be split over learner.ranks = {c.learner.ranks}; "
            "every rank needs at least one"
        )
    if c.anchor.weight_text < 0 or c.anchor.weight_speech < 0 or c.anchor.weight_text + c.anchor.weight_speech <= 0:
        raise InputError(
            f"anchor.weight_text: {c.anchor.weight_text} and anchor.weight_speech: {c.anchor.weight_speech} must not "
            "be negative, nor both 0"
        )
    if c.rollout.workers > c.rollout.prompts:
        raise InputError(
            f"rollout.workers: {c.rollout.workers} workers cannot share rollout.prompts = {c.rollout.prompts} prompts"
        )
    if "path" not in c.reward.codec.arguments:
        raise InputError("reward.codec.arguments.path: missing; it says where the codec's files are")
    if not c.reward.raters:
        raise InputError("reward.raters: no rater; at least one is needed")
    _check_scores(config)


def _check_scores(config: Config) -> None:
    """Scores must be given by somebody before they can be combined, routed or compared."""
    raters = [rater.name for rater in config.reward.raters]
    for key, weights in [
        ("total", config.reward.total),
        *((f"scores.{n}", w) for n, w in config.reward.scores.items()),
    ]:
        if not weights or sum(weights.values()) <= 0 or min(weights.values()) < 0:
            raise InputError(f"reward.{key}: {dict(weights)} must give non-negative weights with a positive sum")
        for name in weights:
            if name not in raters:
                raise InputError(f"reward.{key}: no rater gives the score {name!r}; raters: {', '.join(raters)}")
    for name in config.reward.scores:
        if name in (*raters, "total"):
            raise InputError(f"reward.scores: {name!r} is already the name of a score; choose another")
    known = ["total", *config.reward.scores, *raters]
    preference, pairs = config.preference, config.preference.pairs
    preference.routes = resolve(preference.routes, known)
    for key, name in [("score", pairs.score), *(("ties", name) for name in pairs.ties)]:
        if name not in known:
            raise InputError(f"preference.pairs.{key}: nothing gives the score {name!r}; allowed: {', '.join(known)}")
    if pairs.file and preference.objective != "dpo":
        raise InputError(
            f"preference.pairs.file: {pairs.file} is given, but preference.objective is {preference.objective}; pairs "
            "from a file train with preference.objective=dpo"
        )
    if pairs.file and config.mix.mode == "adaptive":
        raise InputError(
            "mix.mode: adaptive measures λ from rollouts, and pairs from a file are none; use mix.mode=fixed or "
            "two_stage"
        )
    if pairs.file and pairs.chosen == "demonstration":
        raise InputError("preference.pairs.chosen: demonstration is for sampled replies; pairs from a file have theirs")
