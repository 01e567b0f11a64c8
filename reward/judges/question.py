"""A reply put to a judge: messages of OpenAI's chat interface, which chat services and vLLM both read."""

import base64
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from reward.failure import Failure
from reward.http import wav
from reward.judges.rubrics import HIGHEST, LOWEST, digest, instructions, rubric
from reward.rater import SpokenReply
from reward.remote import RemoteSettings
from speech.errors import InputError
from speech.paths import within
from speech.records import Prompt
from speech.waveform import Waveform

NO_SOUND = "no sound of the question"
"""Why there is no score when a prompt names a file that cannot be read."""
REMEMBERED = 32
"""Sounds of questions that are kept: the replies of a group share theirs."""
Message = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class QuestionSettings(RemoteSettings):
    """What a judge is shown of a reply."""

    version: str = "1"
    """A label of your own; model, rubric and all that the judge is told become part of the version by themselves."""
    rubric: str = "holistic"
    """semantic, acoustic, holistic, or a text file (.txt, .md) with a rubric of your own."""
    facts: list[str] = field(default_factory=list)
    """Facts of the prompt that the judge is told, by name: the right answer, the manner asked for."""
    sounds: str = ""
    """Folder of the prompts' Parquet file, below which facts name sound files; empty: the question is not heard."""
    question_audio: str = "question_audio"
    """The fact that names the sound file of the question. A prompt without it is known by its text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rubric", "sounds", "question_audio"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name}: {getattr(self, name)!r} must be text")
        if not isinstance(self.facts, list | tuple) or not all(isinstance(name, str) for name in self.facts):
            raise InputError(f"facts: {self.facts!r} must be a list of names")
        if self.sounds and not Path(self.sounds).is_dir():
            raise InputError(f"sounds: {self.sounds!r} is no folder")
        if self.sounds and not self.listens:
            raise InputError("sounds: a judge that only reads (listens: false) cannot hear the question; leave it out")
        chosen = rubric(self.rubric)
        if chosen.sound and not self.listens:
            raise InputError(f"rubric: {self.rubric} asks for how a reply sounds; listens: false allows semantic only")
        if not chosen.own and (self.lowest, self.highest) != (LOWEST, HIGHEST):
            raise InputError(
                f"lowest, highest: {self.lowest:g} to {self.highest:g}, but the scale of the rubric {self.rubric} is "
                f"{LOWEST:g} to {HIGHEST:g}; another scale needs a rubric of your own"
            )

    def told(self, *, reason_first: bool) -> str:
        """The instructions."""
        return instructions(rubric(self.rubric), self.lowest, self.highest, reason_first=reason_first)

    def label(self, *others: object, reason_first: bool) -> str:
        """Of what is asked and how: part of a version. others: further settings that may change an answer."""
        shown = [self.told(reason_first=reason_first), self.listens, list(self.facts), self.sounds and True]
        asked = digest(FORM, shown, self.sounds and self.question_audio, *others)
        return f"{rubric(self.rubric).name}-{asked}" + (f"-{self.version}" if self.version != "1" else "")


FORM = 1
"""Of `messages`: goes up when they change."""


def messages(settings: QuestionSettings, told: str, spoken: SpokenReply) -> list[Message]:
    """The instructions, then question and reply, in words and, for a judge that listens, in sound.

    Words stand as JSON strings, so that no reply can look like the end of itself. Raises Failure when the question's
    sound is named and cannot be read.
    """
    prompt = spoken.prompt
    parts = [_text(f"The caller's request in words: {_quoted(prompt.text)}")]
    if settings.listens and (heard := _question(settings, prompt)) is not None:
        parts += [_text("The request as it was spoken:"), _sound(heard)]
    for name in settings.facts:
        if name in prompt.facts:
            parts.append(_text(f"Known about the request, {name}: {_quoted(prompt.facts[name])}"))
    parts.append(_text(f"The assistant's reply in words: {_quoted(spoken.text)}"))
    if settings.listens and spoken.waveform is not None:
        parts += [_text("The reply as it was spoken, which is what to judge:"), _sound(encoded(spoken.waveform))]
    if not settings.listens:  # templates of models that only read often want plain text
        return [_message("system", told), _message("user", "\n".join(part["text"] for part in parts))]
    return [_message("system", told), _message("user", parts)]


def encoded(waveform: Waveform) -> str:
    """A WAV file in base64."""
    return base64.b64encode(wav(waveform)).decode()


def _question(settings: QuestionSettings, prompt: Prompt) -> str | None:
    named = prompt.facts.get(settings.question_audio)
    if not settings.sounds or named is None:
        return None
    try:
        return _read(within(Path(settings.sounds), named))
    except (InputError, OSError, RuntimeError, ValueError) as error:  # libsndfile's own error is a RuntimeError
        raise Failure(NO_SOUND, f"fact {settings.question_audio}, {named!r}: {error}") from error


@lru_cache(maxsize=REMEMBERED)
def _read(path: Path) -> str:
    return encoded(Waveform.read(path))


def _quoted(words: str) -> str:
    # Half a surrogate pair can be sampled and cannot be sent.
    return json.dumps(words, ensure_ascii=False).encode(errors="replace").decode()


def _message(role: str, content: object) -> Message:
    return {"role": role, "content": content}


def _text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def _sound(encoded_wav: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": encoded_wav, "format": "wav"}}
