"""A setup under examination: what one check finds out, for those that build on it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.config import Config
from controller.doctor.findings import Finding
from controller.doctor.machine import Machine, Node
from controller.doctor.memory import Shape
from speech.codec import Codec
from speech.families import Family
from speech.records import Demonstration, Prompt
from speech.vocabulary import Vocabulary


class NotKnown(Exception):
    """What a check builds on was not found out. The message says what."""


@dataclass(kw_only=True)
class Case:
    """What is known of a setup so far. None: not yet, or it could not be found out."""

    path: Path
    overrides: list[str]
    config: Config | None = None
    machine: Machine | None = None
    cluster: list[Node] = field(default_factory=list)
    """Nodes of the cluster that a run would join; none where it starts its own."""
    settings: dict[str, Any] | None = None
    """The checkpoint's config.json."""
    family: Family | None = None
    vocabulary: Vocabulary | None = None
    shape: Shape | None = None
    codec: Codec | None = None
    prompts: list[Prompt] | None = None
    """A few, for an example."""
    demonstrations: list[Demonstration] | None = None
    """The first few with speech."""
    findings: list[Finding] = field(default_factory=list)
    """So far."""

    def need(self, name: str) -> Any:
        """What is known by that name. Raises NotKnown."""
        found = getattr(self, name)
        if found is None or found == []:
            raise NotKnown(WORDS[name])
        return found


WORDS = {
    "config": "the configuration",
    "machine": "the machine",
    "settings": "the checkpoint's config.json",
    "family": "the model family",
    "vocabulary": "the vocabulary",
    "shape": "the shape of the model",
    "codec": "the codec",
    "prompts": "a prompt",
    "demonstrations": "a demonstration with speech",
}
"""What each part of a case is called."""
