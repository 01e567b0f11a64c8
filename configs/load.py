"""How large a YAML text gets when its anchors are written out, before anything does so.

a: &a [x, x]
b: &b [*a, *a]        nine such lines of nine are a gigabyte in memory; [*b] inside b never ends

Paths of a configuration. Importable without torch.

Reads a configuration through OmegaConf; `configs.validate` refuses what no run could use.

Importable without torch. Every refusal is an InputError naming the key, the value and what is allowed.
"""

import difflib
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from common.errors import InputError
from common.files import check_exists, read_text
from configs.schema import Config
from configs.validate import changed_sources, check_config

LARGEST = 100_000
"""Values of a configuration, anchors written out."""


def refuse_endless(text: str) -> None:
    """Raises ValueError when anchors hold themselves, or when there would be more than `LARGEST` values."""
    if "*" not in text:  # no anchor is used
        return
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    sizes: dict[int, int] = {}
    _measure(root, sizes, set())


def _measure(node: yaml.Node | None, sizes: dict[int, int], above: set[int]) -> int:
    """Values in a node. sizes: of those measured; above: those that hold this one."""
    if id(node) in above:
        raise ValueError(f"an anchor holds itself, at line {node.start_mark.line + 1}" if node else "")
    if id(node) not in sizes:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_measure(part, sizes, above | {id(node)}) for part in parts)
        if sizes[id(node)] > LARGEST:
            raise ValueError(f"more than {LARGEST:,} values when its anchors are written out")
    return sizes[id(node)]


TABLES = (
    "data.held_out", "reward.total", "reward.scores", "reward.codec.arguments",
    "rollout.resources", "reward.resources", "reward.decoders.resources", "learner.resources",
)  # fmt: skip
"""Keys whose value is a table of the user's own names."""


LARGEST_FILE = 1 << 20


DEEPEST = 20
"""Files that may extend one another."""


def load_config(path: Path, overrides: list[str]) -> Config:
    """Reads a YAML file, applies `key=value` overrides, and checks the whole.

    A file may name another, relative to itself, that it changes: `extends: playground.yaml`. Of a list of such names
    each changes those before it.
    """
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r} is not of the form key=value")
    given = load_resolved_config(path)
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
    check_config(config)
    return config


def load_resolved_config(path: Path, below: tuple[Path, ...] = ()) -> DictConfig:
    """A YAML file upon the one that it extends, not checked. below: the files that led here. Raises InputError."""
    path = path.resolve() if check_exists(path) else path.absolute()
    if path in below:
        raise InputError(f"{path} extends itself, by way of {' → '.join(p.name for p in below)}")
    if len(below) > DEEPEST:
        raise InputError(f"{below[0]} extends more than {DEEPEST} files, each the next; {path.name} is one too many")
    if not check_exists(path):
        named = f", which {below[-1]} extends," if below else ""
        raise InputError(f"configuration file {path}{named} does not exist")
    if path.stat().st_size > LARGEST_FILE:
        raise InputError(f"configuration file {path} has {path.stat().st_size:,} bytes; at most {LARGEST_FILE:,}")
    content = read_text(path)
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
    for part, name in [
        *((load_resolved_config(path.parent / name, (*below, path)), name) for name in bases),
        (own, bases[-1]),
    ]:
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


def make_absolute(config: Config) -> None:
    """Makes every path of a configuration absolute: actors do not share the driver's working directory."""
    config.run.directory = str(Path(config.run.directory).absolute())
    config.model.checkpoint = str(Path(config.model.checkpoint).absolute())
    config.data.prompts = changed_sources(config.data.prompts, _absolute)
    config.data.demonstrations = changed_sources(config.data.demonstrations, _absolute)
    config.data.held_out = {name: _absolute(path) for name, path in config.data.held_out.items()}
    if config.data.encoder_path:
        config.data.encoder_path = _absolute(config.data.encoder_path)
    if config.preference.pairs.file:
        config.preference.pairs.file = _absolute(config.preference.pairs.file)
    config.reward.codec.arguments["path"] = str(Path(config.reward.codec.arguments["path"]).absolute())


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
