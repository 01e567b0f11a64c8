"""What no run could use is refused before anything starts: each refusal is an InputError with the key, the value and
what is allowed. Importable without torch."""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import reduce
from typing import Any

from controller.bounds import CHOICES, MANY, NUMBERS, OPTIONAL_PATHS, PATHS, SOURCES, Bound
from controller.config import Config
from controller.placing import check_needs
from controller.routing import resolve
from controller.sources import check_sources
from speech.errors import InputError
from speech.files import repeated
from speech.secrets import reason_to_refuse

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a run, an evaluation set, a score: each becomes part of the name of a file or a column."""
TAKEN = ("total", "codec")
"""Names of scores and of versions in the records that no rater can have."""
ADDRESS = re.compile(r"auto|local|(ray://)?[A-Za-z0-9._-]+:[0-9]{1,5}|(ray://)?\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")
NAMING = "letters, digits, '.', '_' and '-', at most 100, and starts with one of the first two"


def check(config: Config) -> None:
    """Raises InputError for values that no run could use."""
    _check_secrets(config)  # first: other refusals repeat the value
    c = config
    if c.run.name != "auto" and not NAME.fullmatch(c.run.name):
        raise InputError(f"run.name: {c.run.name!r} may hold {NAMING}")
    for key, allowed in CHOICES.items():
        if (value := valued(c, key)) not in allowed:
            raise InputError(f"{key}: {value!r} is not possible; allowed: {', '.join(map(str, allowed))}")
    for key, bound in NUMBERS.items():
        _check_number(key, valued(c, key), bound)
    for key in PATHS:
        if key in SOURCES:
            check_sources(key, valued(c, key), check_path)
        elif valued(c, key) or key not in OPTIONAL_PATHS:
            check_path(key, valued(c, key))
    for member in ("rollout", "reward", "reward.decoders", "learner"):
        gpus = valued(c, f"{member}.gpus")
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


def valued(config: Config, key: str) -> Any:
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
        if not NAME.fullmatch(name):
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
        if not NAME.fullmatch(name) or name in TAKEN:
            raise InputError(
                f"reward.raters: a rater cannot be called {name!r}; letters, digits, '.', '_' and '-', and not "
                f"{' or '.join(TAKEN)}"
            )
    if (twice := repeated(raters)) is not None:
        raise InputError(f"reward.raters: two raters are called {twice!r}; their names must differ")


def _check_secrets(config: Config) -> None:
    """config.yaml is kept with the run and shown: no key may stand in it."""
    for key, field, value in _texts(asdict(config), "", ""):
        if reason := reason_to_refuse(field, value):
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
        if not NAME.fullmatch(name):
            raise InputError(f"reward.scores: {name!r} may hold letters, digits, '.', '_' and '-'; it names a column")
    if config.rollout.staleness and config.preference.objective == "grpo" and config.preference.ratio == "one":
        raise InputError(
            f"rollout.staleness: {config.rollout.staleness}, but with preference.ratio=one nothing corrects for what "
            "older weights drew; use preference.ratio=truncated or behaviour, or rollout.staleness=0"
        )
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
