"""Reads a configuration through OmegaConf and refuses what no run could use.

Importable without torch. Every refusal is an InputError naming the key, the value and what is allowed.
"""

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from controller.anchors import refuse_endless
from controller.bounds import CHOICES, MANY, NUMBERS, OPTIONAL_PATHS, PATHS, SOURCES, Bound
from controller.config import Config
from controller.placing import check_needs
from controller.routing import resolve
from controller.sources import check_sources
from speech.errors import InputError
from speech.files import repeated, text, there
from speech.secrets import reason_to_refuse

TABLES = (
    "data.held_out", "reward.total", "reward.scores", "reward.codec.arguments",
    "rollout.resources", "reward.resources", "reward.decoders.resources", "learner.resources",
)  # fmt: skip
"""Keys whose value is a table of the user's own names."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Of a run, an evaluation set, a score: each becomes part of the name of a file or a column."""
TAKEN = ("total", "codec")
"""Names of scores and of versions in the records that no rater can have."""
ADDRESS = re.compile(r"auto|local|(ray://)?[A-Za-z0-9._-]+:[0-9]{1,5}|(ray://)?\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")
LARGEST_FILE = 1 << 20
NAMING = "letters, digits, '.', '_' and '-', at most 100, and starts with one of the first two"
DEEPEST = 20
"""Files that may extend one another."""


def read(path: Path, overrides: list[str]) -> Config:
    """Reads a YAML file, applies `key=value` overrides, and checks the whole.

    A file may name another, relative to itself, that it changes: `extends: playground.yaml`. Of a list of such names
    each changes those before it.
    """
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r} is not of the form key=value")
    given = load(path)
    for override in overrides:
        name = override.partition("=")[0]
        try:
            part = OmegaConf.from_dotlist([override])
            given = _upon(given, part) if name in TABLES else OmegaConf.merge(given, part)
        except Exception as error:  # what OmegaConf raises comes in many classes
            raise InputError(f"{path}: its override {override} is not valid: {error}") from error
    for section in fields(Config):
        found = given._get_node(section.name)
        if found is not None and not isinstance(found, DictConfig):
            raise InputError(f"{section.name}: expected a table of keys and values, got {found}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), given)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        raise InputError(f"unknown configuration key {key!r}{_suggestion(key)}") from error
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else f"{path} with its overrides: "
        raise InputError(place + (str(error.msg or error).splitlines() or ["not a value it can have"])[0]) from error
    except Exception as error:  # a number too large for any type, a table where a word was expected, …
        raise InputError(f"{path} with its overrides: {_section(given)}: {error}") from error
    assert isinstance(config, Config)
    # YAML reads a bare on or off as a truth value.
    config.rollout.structure = {"True": "on", "False": "off"}.get(config.rollout.structure, config.rollout.structure)
    check(config)
    return config


def load(path: Path, below: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file upon the one that it extends, not checked. below: the files that led here. Raises InputError."""
    path = path.resolve() if there(path) else path.absolute()
    if path in below:
        raise InputError(f"{path} extends itself, by way of {' → '.join(p.name for p in below)}")
    if len(below) > DEEPEST:
        raise InputError(f"{below[0]} extends more than {DEEPEST} files, each the next; {path.name} is one too many")
    if not there(path):
        named = f", which {below[-1]} extends," if below else ""
        raise InputError(f"configuration file {path}{named} does not exist")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"configuration file {path} has {path.stat().st_size:,} bytes; at most {LARGEST_FILE:,}")
    content = text(path)
    try:
        refuse_endless(content)
        own = OmegaConf.create(content) if content.strip() else OmegaConf.create()
    except Exception as error:  # YAML errors come in many classes
        raise InputError(f"{path}: not valid YAML: {error or type(error).__name__}") from error
    if not isinstance(own, DictConfig):
        raise InputError(f"{path}: expected sections such as `run:` and `model:`, found a {type(own).__name__}")
    try:
        base = own.pop("extends", None)
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: extends must be the name of a file: {error}") from error
    if base is None:
        return own
    bases = [base] if isinstance(base, str) else list(base) if isinstance(base, ListConfig) else []
    if not bases or not all(isinstance(name, str) for name in bases):
        raise InputError(f"{path}: extends must be the name of a file, or a list of such names, got {base!r}")
    merged = OmegaConf.create()
    for part, name in [*((load(path.parent / name, (*below, path)), name) for name in bases), (own, bases[-1])]:
        try:
            merged = _upon(merged, part)
        except Exception as error:  # a list where the other has a section, …
            raise InputError(f"{path} does not fit the file that it extends, {name}: {error}") from error
    return merged


def _section(given: DictConfig) -> str:
    """The section that does not fit, where the error itself does not say."""
    for name in given:
        try:
            OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create({name: given[name]}))
        except Exception:  # of the same many classes
            return str(name)
    return "as a whole"


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
