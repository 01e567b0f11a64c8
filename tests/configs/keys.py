"""Keys of the configuration with their ranges and choices, read from the schema."""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from configs.schema import Config, Section, section_type


@dataclass(frozen=True)
class Leaf:
    """Type, range and choices of a value."""

    type: Any
    low: float | None
    high: float | None
    choices: tuple
    checked: bool
    """True if a validator checks it."""


def leaves(kind: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Leaf]]:
    """Yield every key that is not a section."""
    for name, field in kind.model_fields.items():
        if (section := section_type(field.annotation)) is not None:
            yield from leaves(section, f"{prefix}{name}.")
            continue
        decorated = {n for d in kind.__pydantic_decorators__.field_validators.values() for n in d.info.fields}
        yield prefix + name, _leaf(field.annotation, list(field.metadata), name in decorated)


def _leaf(annotation: Any, metadata: list, checked: bool) -> Leaf:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _leaf(inner, [*metadata, *more], checked)
    if origin in (Union, types.UnionType):  # of a value that may be none
        return _leaf(next(a for a in get_args(annotation) if a is not type(None)), metadata, checked)
    if origin is tuple:
        return _leaf(get_args(annotation)[0], metadata, checked)
    parts = [part for item in metadata for part in (item, *getattr(item, "metadata", ()))]
    return Leaf(
        type=annotation,
        low=next((part.ge for part in parts if hasattr(part, "ge")), None),
        high=next((part.le for part in parts if hasattr(part, "le")), None),
        choices=get_args(annotation) if origin is Literal else (),
        checked=checked or any(hasattr(part, "func") for part in parts),
    )


LEAVES = dict(leaves())
NUMBERS = {key: (leaf.low, leaf.high) for key, leaf in LEAVES.items() if leaf.type in (int, float)}
"""Both ends of the range of each number."""
CHOICES = {key: leaf.choices for key, leaf in LEAVES.items() if leaf.choices}
