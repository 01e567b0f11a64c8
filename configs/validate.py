"""Check a configuration: build it from values, rules over several keys, data sources, Ray resources.

Each refusal is an InputError that names the key, the value and what is allowed. Importable without torch.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import InputError
from common.files import find_duplicate
from common.secrets import find_secret
from configs.routes import resolve_routes
from configs.schema import FILE_NAME, MANY, NAMING, ActorSection, Config, config_keys, path_defect

TAKEN = ("total", "codec")
"""Names of scores and of versions in the records that no reward function can have."""


def batch_summary(config: Config) -> list[tuple[str, str]]:
    """Describe the batch arithmetic, a (what, how much) pair a line, for the start of a run and its record."""
    c = config
    if c.algorithm.name == "dpo":
        return _pairs_summary(c)
    rows = c.replies + c.anchor.batch_size
    per_rank = -(-rows // c.learner.num_workers)
    return [
        ("replies an iteration", f"{c.rollout.batch_size} prompts × {c.rollout.n} = {c.replies}"),
        ("learner rows an iteration", f"{c.replies} replies + {c.anchor.batch_size} demonstrations = {rows}"),
        (
            "rows a rank",
            f"{rows} / {c.learner.num_workers} ranks = {per_rank}, {c.learner.max_tokens_per_micro_batch:,} tokens at "
            "once at most",
        ),
        ("optimiser steps", f"{c.train.num_steps} (one an iteration)"),
        ("replies in all", f"{c.train.num_steps} × {c.replies} = {c.train.num_steps * c.replies:,}"),
    ]


def _pairs_summary(c: Config) -> list[tuple[str, str]]:
    pairs = c.rollout.batch_size
    source = (
        ("pairs an iteration", f"{pairs} from {c.algorithm.dpo.pairs_file}")
        if c.algorithm.dpo.pairs_file
        else ("replies an iteration", f"{pairs} prompts × {c.rollout.n} = {c.replies}, at most {pairs} pairs")
    )
    return [
        source,
        (
            "learner rows an iteration",
            f"at most {pairs} × 2 + {c.anchor.batch_size} demonstrations = {2 * pairs + c.anchor.batch_size}",
        ),
        ("optimiser steps", f"{c.train.num_steps} (one an iteration)"),
    ]


def build_config(values: Mapping[str, Any]) -> Config:
    """Validate the values of all keys. Raises InputError."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise InputError(describe_error(error)) from error
    _check_rules(config)
    return config


def check_config(config: Config) -> None:
    """Check a configuration that was changed after it was built. Raises InputError."""
    values = config.model_dump(warnings=False)  # a wrong type is an error below
    check_secrets(values)
    build_config(values)
    _check_rules(config)  # resolves its routes


def describe_error(error: ValidationError) -> str:
    """Say which key is wrong, its value, and what is allowed: an unknown key, else the first error of the schema."""
    errors = error.errors(include_url=False)
    found = next((one for one in errors if one["type"] in UNKNOWN), errors[0])
    key, kind, context = dotted(found["loc"]), found["type"], found.get("ctx", {})
    if kind in UNKNOWN:
        key = ".".join(map(str, found["loc"]))
        return f"unknown configuration key {key!r}{_suggestion(key)}"
    if kind == "missing":
        return f"{key}: missing; a value is required"
    value = _shown(found["input"])
    if kind == "greater_than_equal":
        return f"{key}: {value} is too small; at least {context['ge']:.10g}"
    if kind == "less_than_equal":
        return f"{key}: {value} is too large; at most {context['le']:.10g}"
    if kind == "literal_error":
        return f"{key}: {value} is not allowed; choose from {context['expected'].replace(chr(39), '')}"
    if kind == "value_error":
        return f"{key}: {value} {context['error']}"
    expected = [what for part, what in EXPECTED.items() if kind.startswith(part)]
    return f"{key}: {value} is not {expected[0]}" if expected else f"{key}: {value}: {found['msg']}"


UNKNOWN = ("extra_forbidden", "invalid_key")
"""Types of pydantic's errors for a key that no section has."""

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "model": "a table of keys and values",
    "dict": "a table of names and values",
    "list": "a list",
    "tuple": "a list",
    "too_": "a list of the right length",
}
"""What a value should have been, by the beginning of pydantic's error type."""


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200


def dotted(place: Sequence[str | int]) -> str:
    """Write the place of an error as a key: reward.functions[0].name. A bad name belongs to the key of its table."""
    key = ""
    for part in place[:-2] if place[-1] == "[key]" else place:
        if isinstance(part, int):
            key += f"[{part}]"
        else:
            key += f".{part}" if key else str(part)
    return key


def _shown(value: Any) -> str:
    return SHORT.repr(value)


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, config_keys(), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; sections are {', '.join(Config.model_fields)}"


def _check_rules(c: Config) -> None:
    """Check rules that take several keys, and tables of the user's own names."""
    for key in ("data.prompts", "data.sft"):
        check_sources(key, parse_value(c, key), check_path)
    check_needs(c)
    _check_backend(c)
    if c.reward.aggregate == "harmonic" and c.reward.score_min <= 0:
        raise InputError(
            f"reward.aggregate: a harmonic mean needs positive scores, and reward.score_min is {c.reward.score_min}"
        )
    if c.reward.score_min >= c.reward.score_max:
        raise InputError(f"reward.score_min: {c.reward.score_min} must be below reward.score_max, {c.reward.score_max}")
    if c.anchor.batch_size < c.learner.num_workers:
        raise InputError(
            f"anchor.batch_size: {c.anchor.batch_size} demonstrations cannot be split over learner.num_workers = "
            f"{c.learner.num_workers}; every rank needs at least one"
        )
    if c.anchor.text_weight + c.anchor.speech_weight <= 0:
        raise InputError(
            "anchor.text_weight: 0, and anchor.speech_weight is 0 too; set one above 0, or the anchor has no effect"
        )
    if c.learner.lora.r and not c.learner.lora.target_modules:
        raise InputError(
            f"learner.lora.target_modules: empty, but learner.lora.r is {c.learner.lora.r}; name at least one pattern"
        )
    if c.rollout.num_workers > c.rollout.batch_size:
        raise InputError(
            f"rollout.num_workers: {c.rollout.num_workers} workers cannot share rollout.batch_size = "
            f"{c.rollout.batch_size} prompts"
        )
    path = c.reward.codec.kwargs.get("path")
    if not isinstance(path, str):
        found = "missing" if path is None else f"{path!r} is not text"
        raise InputError(f"reward.codec.kwargs.path: {found}; set it to the directory of the codec's files")
    check_path("reward.codec.kwargs.path", path)
    if not c.reward.functions:
        raise InputError("reward.functions: empty; at least one reward function is needed")
    _check_names([rater.name for rater in c.reward.functions])
    _check_scores(c)
    _check_algorithm(c)


def parse_value(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def check_path(key: str, value: str) -> None:
    """Raise InputError for what cannot be the name of a file."""
    if defect := path_defect(value):
        raise InputError(f"{key}: {value!r} {defect}")


def _check_backend(c: Config) -> None:
    """A broadcast connects GPUs, each in it once, or CPUs."""
    learner, rollout = c.learner.num_gpus, c.rollout.num_gpus
    if c.weight_sync.backend != "broadcast":
        return
    if (learner > 0) != (rollout > 0):
        raise InputError(
            f"weight_sync.backend: broadcast goes from GPUs to GPUs or from CPUs to CPUs, and learner.num_gpus is "
            f"{learner:g} where rollout.num_gpus is {rollout:g}; use weight_sync.backend=shm, object_store or "
            "filesystem"
        )
    for key, share in (("learner.num_gpus", learner), ("rollout.num_gpus", rollout)):
        if 0 < share < 1:
            raise InputError(
                f"weight_sync.backend: broadcast takes a GPU once, and with {key} = {share:g} several actors share "
                "one; use weight_sync.backend=shm, object_store or filesystem"
            )


def _check_names(raters: list[str]) -> None:
    """Names of scores become columns of the records: each must be valid and unique."""
    for name in raters:
        if not FILE_NAME.fullmatch(name) or name in TAKEN:
            raise InputError(f"reward.functions: {name!r} is not a name; use {NAMING}, and not {' or '.join(TAKEN)}")
    if (twice := find_duplicate(raters)) is not None:
        raise InputError(f"reward.functions: two are called {twice!r}; their names must differ")


def check_secrets(values: Any) -> None:
    """Raise InputError for a secret: config.yaml is kept with the run and shown."""
    for key, field, value in _texts(values, "", ""):
        if reason := find_secret(field, value):
            raise InputError(f"{key}: {reason}")


def _texts(tree: Any, key: str, field: str) -> Iterator[tuple[str, str, str]]:
    """Yield every text of the configuration: its full key, the name of its field, the text."""
    if isinstance(tree, dict):
        for name, below in tree.items():
            yield from _texts(below, f"{key}.{name}".lstrip("."), str(name))
    elif isinstance(tree, list | tuple):
        for index, below in enumerate(tree):
            yield from _texts(below, f"{key}[{index}]", field)
    elif isinstance(tree, str):
        yield key, field, tree


def _check_scores(config: Config) -> None:
    """Scores that are combined must be given by a reward function."""
    raters = [rater.name for rater in config.reward.functions]
    for key, weights in [
        ("weights", config.reward.weights),
        *((f"composites.{n}", w) for n, w in config.reward.composites.items()),
    ]:
        good = weights and all(0 <= weight <= MANY for weight in weights.values())
        if not good or sum(weights.values()) <= 0:
            raise InputError(
                f"reward.{key}: {dict(weights)} must give non-negative weights with a positive sum, at most {MANY:g}"
            )
        for name in weights:
            if name not in raters:
                raise InputError(
                    f"reward.{key}: no reward function gives the score {name!r}; allowed: {', '.join(raters)}"
                )
    for name in config.reward.composites:
        if name in (*raters, "total"):
            raise InputError(f"reward.composites: {name!r} is already the name of a score; choose another")
        if not FILE_NAME.fullmatch(name):
            raise InputError(f"reward.composites: {name!r} is not a name of a column; use {NAMING}")


def _check_algorithm(config: Config) -> None:
    """Scores that are routed or compared must exist, and settings of the algorithm must go together."""
    algorithm, dpo, staleness = config.algorithm, config.algorithm.dpo, config.rollout.max_staleness_steps
    if staleness and algorithm.name == "grpo" and algorithm.importance_sampling == "none":
        raise InputError(
            f"rollout.max_staleness_steps: {staleness}, but algorithm.importance_sampling=none does not correct for "
            "replies of older weights; use algorithm.importance_sampling=truncated or rollout, or "
            "rollout.max_staleness_steps=0"
        )
    known = ["total", *config.reward.composites, *(rater.name for rater in config.reward.functions)]
    algorithm.score_routing = resolve_routes(algorithm.score_routing, known)
    for key, name in [("score", dpo.score), *(("tie_breakers", name) for name in dpo.tie_breakers)]:
        if name not in known:
            raise InputError(f"algorithm.dpo.{key}: nothing gives the score {name!r}; allowed: {', '.join(known)}")
    if dpo.pairs_file and algorithm.name != "dpo":
        raise InputError(
            f"algorithm.dpo.pairs_file: {dpo.pairs_file} is given, but algorithm.name is {algorithm.name}; pairs from "
            "a file train with algorithm.name=dpo"
        )
    if dpo.pairs_file and config.mix_ratio.schedule == "adaptive":
        raise InputError(
            "mix_ratio.schedule: adaptive measures λ from rollouts, and pairs from a file have none; use "
            "mix_ratio.schedule=fixed or two_stage"
        )
    if dpo.pairs_file and dpo.chosen_source == "demonstration":
        raise InputError(
            "algorithm.dpo.chosen_source: demonstration is for sampled replies; pairs from a file have their own"
        )


RESERVED = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that have keys of their own, or that no actor asks for."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")


ROOM_TO_GROW = 8.0
"""Spare CPUs, and spare actors of each pool by their own resources, of a cluster started here: Ray only counts them."""


def required_resources(actor: ActorSection) -> dict[str, float]:
    """Return the Ray resources of one worker, server or rank, without those that are 0."""
    amounts = {"CPU": actor.num_cpus, "GPU": actor.num_gpus, **actor.resources}
    return {what: amount for what, amount in amounts.items() if amount}


def resources_by_role(config: Config) -> dict[str, tuple[int, dict[str, float]]]:
    """Return the actors at the start and the resources of each, by section; decoders where there are any."""
    decoders = config.reward.decoders
    return {
        "rollout": (config.rollout.num_workers, required_resources(config.rollout)),
        "reward": (config.reward.num_servers, required_resources(config.reward)),
        **({"reward.decoders": (decoders.num_workers, required_resources(decoders))} if decoders.num_workers else {}),
        "learner": (config.learner.num_workers, required_resources(config.learner)),
    }


def check_needs(config: Config) -> None:
    """Raise InputError for resources that no placement group can have."""
    for role, (_, needed) in resources_by_role(config).items():
        for name, amount in attrgetter(role)(config).resources.items():
            if not NAME.fullmatch(name) or name in RESERVED:
                raise InputError(
                    f"{role}.resources: {name!r} is not the name of a custom resource; use the name that nodes were "
                    f"started with, and none of {', '.join(RESERVED)} (set {role}.num_cpus and {role}.num_gpus)"
                )
            if not (math.isfinite(amount) and 0 <= amount <= 1e6):
                raise InputError(f"{role}.resources: {amount} of {name!r} is not allowed; from 0 to 1000000")
        if not needed:
            raise InputError(
                f"{role}.num_cpus: 0, and {role}.num_gpus and {role}.resources are empty too; set at least one above "
                "0, "
                "such as num_cpus: 0.1"
            )


def local_cluster_resources(config: Config, cpus: int) -> tuple[int, dict[str, float]]:
    """Return the CPUs and custom resources that a cluster of this one machine, with `cpus` CPUs, should count."""
    counted: dict[str, float] = {}
    for members, needed in resources_by_role(config).values():
        for what, amount in needed.items():
            room = 0.0 if what in RESERVED else ROOM_TO_GROW * amount
            counted[what] = counted.get(what, 0.0) + members * amount + room
    needed_cpus = int(1 + counted.pop("CPU", 0.0))
    counted.pop("GPU", None)  # Ray counts these itself
    return max(cpus, needed_cpus) + int(ROOM_TO_GROW), counted


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A file or folder of data."""

    path: str
    weight: float = 1.0
    """Share of each iteration, relative to the other sources."""


def data_sources(value: Any) -> list[DataSource]:
    """Parse `data.prompts` or `data.sft`, which must have been checked."""
    return [DataSource(path=value)] if isinstance(value, str) else [DataSource(**one) for one in value]


def data_paths(value: Any) -> list[Path]:
    """Return the paths of the sources."""
    return [Path(source.path) for source in data_sources(value)]


def source_name(value: Any) -> str:
    """Name the sources in a sentence."""
    return ", ".join(source.path for source in data_sources(value))


def changed_sources(value: Any, change: Callable[[str], str]) -> Any:
    """Return the sources with changed paths."""
    if isinstance(value, str):
        return change(value)
    return [{"path": change(source.path), "weight": source.weight} for source in data_sources(value)]


def check_sources(key: str, value: Any, check_path: Callable[[str, str], None]) -> None:
    """Raise InputError unless the value is a path, or a list of paths with weights."""
    if isinstance(value, str):
        check_path(key, value)
        return
    if not isinstance(value, list) or not value:
        raise InputError(
            f"{key}: {value!r} is not a source; give a path, or a list such as [{{path: a, weight: 2}}, …]"
        )
    for place, one in enumerate(value):
        at = f"{key}[{place}]"
        if not isinstance(one, dict) or not {"path"} <= set(one) <= {"path", "weight"}:
            raise InputError(f"{at}: {one!r} is not a source; give a path, a weight, and no other key")
        if not isinstance(one["path"], str):
            raise InputError(f"{at}.path: {one['path']!r} cannot be the name of a file or folder")
        check_path(f"{at}.path", one["path"])
        weight = one.get("weight", 1.0)
        good = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not good or not 1 / MANY <= weight <= MANY:
            raise InputError(f"{at}.weight: {weight!r} is not allowed; give a number from {1 / MANY:g} to {MANY:g}")
    if len({Path(one["path"]) for one in value}) < len(value):
        raise InputError(f"{key}: two sources have the same path; give it once, with a weight")
