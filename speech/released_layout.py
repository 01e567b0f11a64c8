"""How a released checkpoint lies on disk, where transformers and vLLM do not read it as it is.

`duet import` writes its trunk, the language model that answers, as an architecture that both know, and `duet export`
puts what was trained back into the released layout. One description of the names serves both ways.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]
"""A checkpoint's config.json."""


@dataclass(frozen=True)
class TensorPart:
    """A tensor of the trunk, which makes up some rows of a released one."""

    name: str
    rows: int | None = None
    """Of the first axis; None: all."""


@dataclass(frozen=True, kw_only=True)
class ReleasedLayout:
    """A released layout."""

    model_types: tuple[str, ...]
    """What config.json calls it."""
    config: Callable[[Config], dict[str, Any]]
    """The trunk's config.json, of the released one's. Raises KeyError for a setting that is not there."""
    parts: Callable[[str, Config], tuple[TensorPart, ...]]
    """Of a released tensor, by its name: the trunk's tensors that lie one behind another in it; none where it is no
    part of the trunk (other heads, encoders, talkers), which stays as it was."""
    division: str | None = None
    """How its tokenizer divides a text, where it is released as tiktoken's ranks; a regular expression."""


def renamed(rules: Mapping[str, str]) -> Callable[[str, Config], tuple[TensorPart, ...]]:
    """Parts for layouts that differ in names alone.

    rules: regular expressions of whole names, the first that fits, with what the name becomes. A name that none fits is
    no part of the trunk.
    """
    compiled = [(re.compile(pattern), become) for pattern, become in rules.items()]

    def parts(name: str, config: Config) -> tuple[TensorPart, ...]:
        for pattern, become in compiled:
            if (found := pattern.fullmatch(name)) is not None:
                return (TensorPart(found.expand(become)),)
        return ()

    return parts
