"""Read the configuration: YAML files, `extends`, `key=value` overrides, absolute paths.

`configs.validate` checks the result. Importable without torch. Every refusal is an InputError that names the key, the
value and what is allowed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError
from common.files import check_exists, read_text
from configs.schema import Config, Section, section_type
from configs.validate import build_config, changed_sources, check_secrets

MAX_VALUES = 100_000
"""Values of a YAML file, anchors expanded."""

MAX_FILE_BYTES = 1 << 20

MAX_EXTENDS = 20
"""Length of a chain of files that extend one another."""

TABLES = (
    "data.validation", "reward.weights", "reward.composites", "reward.codec.kwargs",
    "rollout.resources", "reward.resources", "reward.decoders.resources", "learner.resources",
)  # fmt: skip
"""Keys whose value is a table of the user's own names."""


def load_config(paths: Path | Sequence[Path], overrides: Sequence[str]) -> Config:
    """Read YAML files, each over those before it, apply `key=value` overrides, and check the result.

    A file may name another, relative to itself, that it changes: `extends: playground.yaml`. In a list of such names
    each changes those before it.
    """
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r} is not of the form key=value")
    given = load_yaml(paths)
    name = ", ".join(map(str, _paths(paths)))
    for override in overrides:
        key = override.partition("=")[0]
        try:
            part = OmegaConf.from_dotlist([override])
            given = merge(given, part) if key in TABLES else OmegaConf.merge(given, part)
        except Exception as error:  # OmegaConf raises many classes
            raise InputError(f"{name}: its override {override} is not valid: {error}") from error
    try:
        values = OmegaConf.to_container(OmegaConf.merge(_defaults(Config, given), given), resolve=True)
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else f"{name} with its overrides: "
        raise InputError(place + (str(error.msg or error).splitlines() or ["cannot be read"])[0]) from error
    except Exception as error:  # a number too large for any type, …
        raise InputError(f"{name} with its overrides: {error}") from error
    check_secrets(values)  # before any other refusal repeats the value
    try:
        return build_config(values)
    except OverflowError as error:
        raise InputError(f"{name} with its overrides: {error}") from error


def load_yaml(paths: Path | Sequence[Path]) -> DictConfig:
    """Read YAML files with all that they extend, each over those before it, without checking keys and values."""
    merged = OmegaConf.create()
    for path in _paths(paths):
        part = load_resolved_config(path)
        try:
            merged = merge(merged, part)
        except Exception as error:  # a list where the other has a section, …
            raise InputError(f"{path} does not fit the configuration files before it: {error}") from error
    return merged


def _paths(paths: Path | Sequence[Path]) -> list[Path]:
    return [paths] if isinstance(paths, Path) else list(paths)


def load_resolved_config(path: Path, below: tuple[Path, ...] = ()) -> DictConfig:
    """Read a YAML file over those that it extends, without checking keys and values.

    below: the files that led here. Raises InputError.
    """
    path = path.resolve() if check_exists(path) else path.absolute()
    if path in below:
        raise InputError(f"{path} extends itself, by way of {' → '.join(p.name for p in below)}")
    if len(below) > MAX_EXTENDS:
        raise InputError(
            f"{below[0]} extends more than {MAX_EXTENDS} files, each the next; {path.name} is one too many"
        )
    if not check_exists(path):
        named = f", which {below[-1]} extends," if below else ""
        raise InputError(f"configuration file {path}{named} does not exist")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"configuration file {path} has {path.stat().st_size:,} bytes; at most {MAX_FILE_BYTES:,}")
    content = read_text(path)
    try:
        check_anchors(content)
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
    for part, name in [
        *((load_resolved_config(path.parent / name, (*below, path)), name) for name in bases),
        (own, bases[-1]),
    ]:
        try:
            merged = merge(merged, part)
        except Exception as error:  # a list where the other has a section, …
            raise InputError(f"{path} does not fit the file that it extends, {name}: {error}") from error
    return merged


def merge(base: Any, own: Any) -> Any:
    """Merge `own` over `base`. A table of names and values replaces the one below it as a whole."""
    for key in TABLES:
        if OmegaConf.select(own, key) is not None and OmegaConf.select(base, key) is not None:
            OmegaConf.update(base, key, {}, merge=False)
    return OmegaConf.merge(base, own)


def _defaults(kind: type[Section], given: Any) -> dict[str, Any]:
    """Defaults of every key that was not given, for interpolations such as ${run.seed} to refer to."""
    found = {}
    for name, field in kind.model_fields.items():
        own = given._get_node(name) if isinstance(given, DictConfig) else None
        if (below := section_type(field.annotation)) is not None:
            if own is None or isinstance(own, DictConfig):
                found[name] = _defaults(below, own)
        elif own is None and not field.is_required():
            found[name] = field.get_default(call_default_factory=True)
    return found


def check_anchors(text: str) -> None:
    """Raise ValueError for anchors that contain themselves or expand to more than `MAX_VALUES` values.

    a: &a [x, x]
    b: &b [*a, *a]        nine such lines of nine are a gigabyte in memory; [*b] inside b never ends
    """
    if "*" not in text:  # no anchor is used
        return
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    sizes: dict[int, int] = {}
    _measure(root, sizes, set())


def _measure(node: yaml.Node | None, sizes: dict[int, int], above: set[int]) -> int:
    """Count the values in a node. sizes: of nodes counted before; above: the nodes that contain this one."""
    if id(node) in above:
        raise ValueError(f"an anchor contains itself, at line {node.start_mark.line + 1}" if node else "")
    if id(node) not in sizes:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_measure(part, sizes, above | {id(node)}) for part in parts)
        if sizes[id(node)] > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values when its anchors are expanded")
    return sizes[id(node)]


def make_absolute(config: Config) -> None:
    """Make every path of a configuration absolute: actors do not share the driver's working directory."""
    config.run.directory = str(Path(config.run.directory).absolute())
    config.model.path = str(Path(config.model.path).absolute())
    config.data.prompts = changed_sources(config.data.prompts, _absolute)
    config.data.sft = changed_sources(config.data.sft, _absolute)
    config.data.validation = {name: _absolute(path) for name, path in config.data.validation.items()}
    if config.data.encoder_path:
        config.data.encoder_path = _absolute(config.data.encoder_path)
    if config.algorithm.dpo.pairs_file:
        config.algorithm.dpo.pairs_file = _absolute(config.algorithm.dpo.pairs_file)
    config.reward.codec.kwargs["path"] = str(Path(config.reward.codec.kwargs["path"]).absolute())


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
