"""Model families: how each spells its tokens and interleaves its channels. A family is one entry."""

from dataclasses import dataclass

from speech.errors import InputError
from speech.interleave import Interleave
from speech.vocabulary import TokenNames


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the rest of Duet must know of a model family."""

    name: str
    tokens: TokenNames
    interleave: Interleave
    follows_pattern: bool
    """True when the model keeps to the pattern by itself, so that sampling need not be constrained."""


PLAYGROUND = Family(
    name="playground",
    tokens=TokenNames(
        end_reply="<|im_end|>",
        pad="<|pad|>",
        begin_speech="<|begin_of_audio|>",
        end_speech="<|end_of_audio|>",
        never_text=("<|im_start|>",),
    ),
    interleave=Interleave(chunks=((2, 8),), repeat_from=0, boundaries=True),
    follows_pattern=False,
)

FAMILIES = {family.name: family for family in (PLAYGROUND,)}


def family(name: str) -> Family:
    """The family of that name. Raises InputError naming the known ones."""
    if name not in FAMILIES:
        raise InputError(f"model.family: unknown family {name!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]
