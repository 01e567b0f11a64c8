"""What the rest of Duet must know of a model family, and how it writes a dialogue down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from common.errors import InputError
from speech.grammar import Grammar
from speech.released_layout import ReleasedLayout
from speech.types import Turn
from speech.vocabulary import TokenNames, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a dialogue is written, in the tokenizer's own spelling: special tokens by name, other text as it is."""

    turns: Mapping[str, tuple[str, str]]
    """What stands before and after a turn, by its role: system, user, assistant."""
    speech: tuple[str, str]
    """What stands around the sound of a turn that is no reply of the model's."""
    reply: str
    """What a reply goes on from."""
    start: str = ""
    """What stands before everything."""
    system: str = ""
    """Text of a system turn where a dialogue begins with none; empty: none is made up."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A way to spell tokens, to interleave channels and to write dialogues, which some checkpoints share."""

    name: str
    tokens: TokenNames
    interleave: Grammar
    follows_pattern: bool
    """True when the model keeps to the pattern by itself, so that sampling need not be constrained."""
    template: Template | None = None
    """None: prompts come as ids, from elsewhere."""
    original: ReleasedLayout | None = None
    """How released checkpoints lie on disk, for `duet import`; None: as transformers and vLLM read them."""
    hears: Literal["codes", "features"] = "codes"
    """What stands for a speaker's sound in a prompt: codes of the codec, or slots for an encoder's features."""
    trained: tuple[Literal["text", "speech"], ...] = ("text", "speech")
    """Channels that replies have, and which can be trained."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parts of the model by name, as patterns of parameters: `model.freeze` may name them."""
    codec: str = ""
    """module:Class of the decoder that belongs to it; empty: none of ours."""
    streams: int = 1
    """Tokens that the model takes and gives in each step: 2 where text and speech run side by side
    (`speech.multistream_grammar`). Prompts and replies then have those of a step one behind the other."""
    architecture: str = ""
    """module:Class of the model (`speech.modeling`) where transformers has none that fits; empty: transformers' own."""

    def parameters(self, names: Sequence[str]) -> list[str]:
        """Patterns of parameters; names of `parts` among them stand for what they are made of."""
        return [pattern for name in names for pattern in self.parts.get(name, (name,))]

    def prompt(self, turns: Sequence[Turn], vocabulary: Vocabulary) -> np.ndarray:
        """int32 [P]: a dialogue up to where the model's reply begins. The last turn is not the model's.

        A turn with features gets a slot for each of their frames. Raises InputError for a role or a kind of sound that
        the family does not know.
        """
        template = self._template()
        if template.system and not (turns and turns[0].role == "system"):
            turns = [Turn(role="system", text=template.system), *turns]
        if not turns or turns[-1].role == "assistant":
            raise InputError("a dialogue must end with a turn that the model can answer")
        ids = _ids(template.start, vocabulary)
        for turn in turns:
            if turn.role not in template.turns:
                known = ", ".join(sorted(template.turns))
                raise InputError(f"role {turn.role!r} is not one that family {self.name} knows: {known}")
            before, after = template.turns[turn.role]
            content = self._said(turn, vocabulary) if turn.role == "assistant" else self._heard(turn, vocabulary)
            ids += [*_ids(before, vocabulary), *content, *_ids(after, vocabulary)]
        return np.asarray([*ids, *_ids(template.reply, vocabulary)], dtype=np.int32)

    def reply(self, text: str, codes: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
        """int32 [T]: a reply that says so, with codes int64 [S] for its sound, laid out as the family does."""
        speech = (np.asarray(codes, dtype=np.int64) + vocabulary.speech_first).tolist()
        return self.interleave.lay_out(_ids(text, vocabulary), speech, vocabulary)

    def _template(self) -> Template:
        if self.template is None:
            raise InputError(f"family {self.name} has no template: its prompts must come as ids")
        return self.template

    def _said(self, turn: Turn, vocabulary: Vocabulary) -> list[int]:
        """A turn of the model's own, as it replied then, without the end, which the template has."""
        if turn.codes is None:
            return _ids(turn.text or "", vocabulary)
        return self.reply(turn.text or "", turn.codes, vocabulary)[:-1].tolist()

    def _heard(self, turn: Turn, vocabulary: Vocabulary) -> list[int]:
        ids = _ids(turn.text or "", vocabulary)
        begin, end = (_ids(mark, vocabulary) for mark in self._template().speech)
        if turn.features is not None:
            if vocabulary.slot is None:
                raise InputError(f"family {self.name} hears codes, but a turn has features")
            return [*ids, *begin, *[vocabulary.slot] * turn.features, *end]
        if turn.codes is not None:
            if self.hears != "codes":
                raise InputError(f"family {self.name} hears features of its encoder, but a turn has codes")
            codes = np.asarray(turn.codes, dtype=np.int64)
            if len(codes) and not 0 <= codes.min() <= codes.max() < vocabulary.codebook:
                raise InputError(f"a turn has code {int(codes.max())}, outside the codebook of {vocabulary.codebook}")
            return [*ids, *begin, *(codes + vocabulary.speech_first).tolist(), *end]
        return ids


def _ids(text: str, vocabulary: Vocabulary) -> list[int]:
    return vocabulary.tokenizer.encode(text, add_special_tokens=False).ids if text else []
