"""The batch arithmetic in words, for the start of a run and its record. Importable without torch.

What no run could use is refused before anything starts: each refusal is an InputError with the key, the value and
what is allowed. Importable without torch.

What members need of a cluster, in Ray's resources. Pure, and importable without torch.

Data sets that a run is made of: one, or several that are mixed by weight. Importable without torch.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import find_duplicate
from common.secrets import find_secret
from configs.routes import resolve_routes
from configs.schema import (
    CHOICES,
    MANY,
    NUMBERS,
    OPTIONAL_PATHS,
    PATHS,
    SOURCES,
    Bound,
    Config,
    Decoders,
    Learner,
    Reward,
    Rollout,
)


def batch_summary(config: Config) -> list[tuple[str, str]]:
    """The batch arithmetic in words, a (what, how much) pair a line, for the start of a run and its record."""
    c = config
    if c.preference.objective == "dpo":
        return _arithmetic_of_pairs(c)
    rows = c.replies + c.anchor.rows
    per_rank = -(-rows // c.learner.ranks)
    return [
        ("replies an iteration", f"{c.rollout.prompts} prompts × {c.rollout.group_size} = {c.replies}"),
        ("learner rows an iteration", f"{c.replies} replies + {c.anchor.rows} demonstrations = {rows}"),
        (
            "rows a rank",
            f"{rows} / {c.learner.ranks} ranks = {per_rank}, {c.learner.micro_batch_tokens:,} tokens at once at most",
        ),
        ("optimiser steps", f"{c.run.iterations} (one an iteration)"),
        ("replies in all", f"{c.run.iterations} × {c.replies} = {c.run.iterations * c.replies:,}"),
    ]


def _arithmetic_of_pairs(c: Config) -> list[tuple[str, str]]:
    pairs = c.rollout.prompts
    source = (
        ("pairs an iteration", f"{pairs} from {c.preference.pairs.file}")
        if c.preference.pairs.file
        else ("replies an iteration", f"{pairs} prompts × {c.rollout.group_size} = {c.replies}, at most {pairs} pairs")
    )
    return [
        source,
        (
            "learner rows an iteration",
            f"at most {pairs} × 2 + {c.anchor.rows} demonstrations = {2 * pairs + c.anchor.rows}",
        ),
        ("optimiser steps", f"{c.run.iterations} (one an iteration)"),
    ]


FIELD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a run, an evaluation set, a score: each becomes part of the name of a file or a column."""


TAKEN = ("total", "codec")
"""Names of scores and of versions in the records that no rater can have."""


ADDRESS = re.compile(r"auto|local|(ray://)?[A-Za-z0-9._-]+:[0-9]{1,5}|(ray://)?\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")


NAMING = "letters, digits, '.', '_' and '-', at most 100, and starts with one of the first two"


def check_config(config: Config) -> None:
    """Raises InputError for values that no run could use."""
    _check_secrets(config)  # first: other refusals repeat the value
    c = config
    if c.run.name != "auto" and not FIELD_NAME.fullmatch(c.run.name):
        raise InputError(f"run.name: {c.run.name!r} may hold {NAMING}")
    for key, allowed in CHOICES.items():
        if (value := parse_value(c, key)) not in allowed:
            raise InputError(f"{key}: {value!r} is not possible; allowed: {', '.join(map(str, allowed))}")
    for key, bound in NUMBERS.items():
        _check_number(key, parse_value(c, key), bound)
    for key in PATHS:
        if key in SOURCES:
            check_sources(key, parse_value(c, key), check_path)
        elif parse_value(c, key) or key not in OPTIONAL_PATHS:
            check_path(key, parse_value(c, key))
    for member in ("rollout", "reward", "reward.decoders", "learner"):
        gpus = parse_value(c, f"{member}.gpus")
        if gpus > 1 and gpus != int(gpus):
            raise InputError(f"{member}.gpus: {gpus} is not possible; a share of one GPU, or whole GPUs")
    check_needs(c)
    _check_exchange(c)
    _check_evaluation_sets(c.data.held_out)
    _check_addresses(c)
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
    if c.anchor.weight_text + c.anchor.weight_speech <= 0:
        raise InputError(
            "anchor.weight_text: it must not be 0 where anchor.weight_speech is 0 too; no anchor would stay"
        )
    if c.learner.lora.rank and not c.learner.lora.targets:
        raise InputError(
            f"learner.lora.targets: no pattern, but learner.lora.rank is {c.learner.lora.rank}; at least one is needed"
        )
    if c.rollout.workers > c.rollout.prompts:
        raise InputError(
            f"rollout.workers: {c.rollout.workers} workers cannot share rollout.prompts = {c.rollout.prompts} prompts"
        )
    path = c.reward.codec.arguments.get("path")
    if not isinstance(path, str):
        found = "missing" if path is None else f"{path!r} is no name"
        raise InputError(f"reward.codec.arguments.path: {found}; it says where the codec's files are")
    check_path("reward.codec.arguments.path", path)
    if not c.reward.raters:
        raise InputError("reward.raters: no rater; at least one is needed")
    _check_names([rater.name for rater in c.reward.raters])
    _check_scores(config)


def parse_value(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def _check_number(key: str, value: Any, bound: Bound) -> None:
    if value is None:
        return
    for number in value if isinstance(value, list | tuple) else [value]:
        if complaint := bound.complaint(number):
            raise InputError(f"{key}: {complaint}")


def check_path(key: str, value: str) -> None:
    """A name that some file could have, so that asking for it cannot fail in other ways than that it is not there."""
    try:
        parts = os.fsencode(value).split(b"/")
    except UnicodeEncodeError as error:
        raise InputError(f"{key}: {value!r} cannot be the name of a file") from error
    if not value or "\0" in value or len(os.fsencode(value)) > 4000 or any(len(part) > 255 for part in parts):
        raise InputError(f"{key}: {value!r} cannot be the name of a file or folder; it is empty, too long or not text")


def _check_exchange(c: Config) -> None:
    """A broadcast is between GPUs, each in it once, or between processors."""
    learner, rollout = c.learner.gpus, c.rollout.gpus
    if c.run.exchange != "broadcast":
        return
    if (learner > 0) != (rollout > 0):
        raise InputError(
            f"run.exchange: broadcast goes from GPUs to GPUs or from CPUs to CPUs, and learner.gpus is {learner:g} "
            f"where rollout.gpus is {rollout:g}; use run.exchange=memory, objects or directory"
        )
    for key, share in (("learner.gpus", learner), ("rollout.gpus", rollout)):
        if 0 < share < 1:
            raise InputError(
                f"run.exchange: broadcast takes a GPU once, and with {key} = {share:g} several members share one; use "
                "run.exchange=memory, objects or directory"
            )


def _check_evaluation_sets(held_out: dict[str, str]) -> None:
    for name, path in held_out.items():
        if not FIELD_NAME.fullmatch(name):
            raise InputError(f"data.held_out: {name!r} may hold letters, digits, '.', '_' and '-'; it names a file")
        check_path(f"data.held_out.{name}", path)


def _check_addresses(c: Config) -> None:
    try:
        good = bool(c.metrics.host.encode("idna")) and c.metrics.host.isascii() and c.metrics.host.isprintable()
    except UnicodeError:
        good = False
    if not good or " " in c.metrics.host:
        raise InputError(f"metrics.host: {c.metrics.host!r} is not the name or address of a host, such as 127.0.0.1")
    if c.cluster.address and not ADDRESS.fullmatch(c.cluster.address):
        raise InputError(
            f"cluster.address: {c.cluster.address!r} is not possible; allowed: HOST:PORT, ray://HOST:PORT, auto, "
            "local, or nothing"
        )


def _check_names(raters: list[str]) -> None:
    """Names of scores become columns of the records: each must be one, and one alone."""
    for name in raters:
        if not FIELD_NAME.fullmatch(name) or name in TAKEN:
            raise InputError(
                f"reward.raters: a rater cannot be called {name!r}; letters, digits, '.', '_' and '-', and not "
                f"{' or '.join(TAKEN)}"
            )
    if (twice := find_duplicate(raters)) is not None:
        raise InputError(f"reward.raters: two raters are called {twice!r}; their names must differ")


def _check_secrets(config: Config) -> None:
    """config.yaml is kept with the run and shown: no key may stand in it."""
    for key, field, value in _texts(asdict(config), "", ""):
        if reason := find_secret(field, value):
            raise InputError(f"{key}: {reason}")


def _texts(tree: Any, key: str, field: str) -> Iterator[tuple[str, str, str]]:
    """Every text of the configuration: its full key, the name of its field, the text."""
    if isinstance(tree, dict):
        for name, below in tree.items():
            yield from _texts(below, f"{key}.{name}".lstrip("."), str(name))
    elif isinstance(tree, list | tuple):
        for index, below in enumerate(tree):
            yield from _texts(below, f"{key}[{index}]", field)
    elif isinstance(tree, str):
        yield key, field, tree


def _check_scores(config: Config) -> None:
    """Scores must be given by somebody before they can be combined, routed or compared."""
    raters = [rater.name for rater in config.reward.raters]
    for key, weights in [
        ("total", config.reward.total),
        *((f"scores.{n}", w) for n, w in config.reward.scores.items()),
    ]:
        good = weights and all(0 <= weight <= MANY for weight in weights.values())
        if not good or sum(weights.values()) <= 0:
            raise InputError(
                f"reward.{key}: {dict(weights)} must give non-negative weights with a positive sum, at most {MANY:g}"
            )
        for name in weights:
            if name not in raters:
                raise InputError(f"reward.{key}: no rater gives the score {name!r}; raters: {', '.join(raters)}")
    for name in config.reward.scores:
        if name in (*raters, "total"):
            raise InputError(f"reward.scores: {name!r} is already the name of a score; choose another")
        if not FIELD_NAME.fullmatch(name):
            raise InputError(f"reward.scores: {name!r} may hold letters, digits, '.', '_' and '-'; it names a column")
    if config.rollout.staleness and config.preference.objective == "grpo" and config.preference.ratio == "one":
        raise InputError(
            f"rollout.staleness: {config.rollout.staleness}, but with preference.ratio=one nothing corrects for what "
            "older weights drew; use preference.ratio=truncated or behaviour, or rollout.staleness=0"
        )
    known = ["total", *config.reward.scores, *raters]
    preference, pairs = config.preference, config.preference.pairs
    preference.routes = resolve_routes(preference.routes, known)
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


RESERVED = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources that have keys of their own, or that no member asks for."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")


ROOM_TO_GROW = 8.0
"""CPUs, and members of each pool by their own resources, that a cluster of our own counts besides: Ray only counts."""


def required_resources(member: Rollout | Reward | Decoders | Learner) -> dict[str, float]:
    """Resources of one worker, server or rank; what is 0 has no entry."""
    amounts = {"CPU": member.cpus, "GPU": member.gpus, **member.resources}
    return {what: amount for what, amount in amounts.items() if amount}


def resources_by_role(config: Config) -> dict[str, tuple[int, dict[str, float]]]:
    """Members at the start and needs of each, by section of the configuration; decoders where there are any."""
    decoders = config.reward.decoders
    return {
        "rollout": (config.rollout.workers, required_resources(config.rollout)),
        "reward": (config.reward.servers, required_resources(config.reward)),
        **({"reward.decoders": (decoders.members, required_resources(decoders))} if decoders.members else {}),
        "learner": (config.learner.ranks, required_resources(config.learner)),
    }


def check_needs(config: Config) -> None:
    """Raises InputError for needs that no placement group can have."""
    for role, (_, needed) in resources_by_role(config).items():
        for name, amount in attrgetter(role)(config).resources.items():
            if not NAME.fullmatch(name) or name in RESERVED:
                raise InputError(
                    f"{role}.resources: {name!r} is not possible; a resource that nodes are started with, by its name, "
                    f"and none of {', '.join(RESERVED)} ({role}.cpus and {role}.gpus say those)"
                )
            if not (math.isfinite(amount) and 0 <= amount <= 1e6):
                raise InputError(f"{role}.resources: {amount} of {name!r} is not possible; from 0 to 1000000")
        if not needed:
            raise InputError(
                f"{role}.cpus: 0, and neither {role}.gpus nor {role}.resources ask for anything; Ray holds a place of "
                "some size only, such as 0.1"
            )


def local_cluster_resources(config: Config, cpus: int) -> tuple[int, dict[str, float]]:
    """CPUs and further resources that a cluster of this one machine, with so many CPUs, is to count."""
    counted: dict[str, float] = {}
    for members, needed in resources_by_role(config).values():
        for what, amount in needed.items():
            room = 0.0 if what in RESERVED else ROOM_TO_GROW * amount
            counted[what] = counted.get(what, 0.0) + members * amount + room
    needed_cpus = int(1 + counted.pop("CPU", 0.0))
    counted.pop("GPU", None)  # those that there are, which Ray counts itself
    return max(cpus, needed_cpus) + int(ROOM_TO_GROW), counted


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """A file or folder of data."""

    path: str
    weight: float = 1.0
    """Its share of each iteration, relative to the others'."""


def data_sources(value: Any) -> list[DataSource]:
    """What `data.prompts` or `data.demonstrations` names, once it has been checked."""
    return [DataSource(path=value)] if isinstance(value, str) else [DataSource(**one) for one in value]


def data_paths(value: Any) -> list[Path]:
    """The same without the weights."""
    return [Path(source.path) for source in data_sources(value)]


def source_name(value: Any) -> str:
    """What to call them in a sentence."""
    return ", ".join(source.path for source in data_sources(value))


def changed_sources(value: Any, change: Callable[[str], str]) -> Any:
    """The same with other paths."""
    if isinstance(value, str):
        return change(value)
    return [{"path": change(source.path), "weight": source.weight} for source in data_sources(value)]


def check_sources(key: str, value: Any, check_path: Callable[[str, str], None]) -> None:
    """Raises InputError unless the value is a path, or a list of paths with weights."""
    if isinstance(value, str):
        check_path(key, value)
        return
    if not isinstance(value, list) or not value:
        raise InputError(f"{key}: {value!r} is not possible; a path, or a list such as [{{path: a, weight: 2}}, …]")
    for place, one in enumerate(value):
        at = f"{key}[{place}]"
        if not isinstance(one, dict) or not {"path"} <= set(one) <= {"path", "weight"}:
            raise InputError(f"{at}: {one!r} is not possible; it has a path, a weight, and nothing else")
        if not isinstance(one["path"], str):
            raise InputError(f"{at}.path: {one['path']!r} cannot be the name of a file or folder")
        check_path(f"{at}.path", one["path"])
        weight = one.get("weight", 1.0)
        good = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
        if not good or not 1 / MANY <= weight <= MANY:
            raise InputError(f"{at}.weight: {weight!r} is not possible; a number from {1 / MANY:g} to {MANY:g}")
    if len({Path(one["path"]) for one in value}) < len(value):
        raise InputError(f"{key}: two sources have the same path; give it once, with a weight")
