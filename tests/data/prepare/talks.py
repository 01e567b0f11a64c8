"""Dialogues of the embedded world as a user would have them: words, and recordings in files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.records import read_demonstrations
from playground.codec import PlaygroundCodec
from playground.data import WorldLayout
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.types import Demonstration
from speech.vocabulary import Vocabulary

PROMPT_FACTS = {"answer": "seven", "manner": "high-fast"}


class Talks:
    """Rows with recordings below a folder."""

    def __init__(self, world: Path, folder: Path, count: int) -> None:
        self.folder = folder
        self.vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
        self.codec = PlaygroundCodec.load(world / "codec")
        self.shown: list[Demonstration] = read_demonstrations(world / "data/demonstrations.parquet", self.vocabulary)
        for number, one in enumerate(self.shown[:count]):
            for name, ids in (("question", one.prompt_ids), ("answer", one.reply_ids)):
                self.codec.decode(self.vocabulary.codes(ids)).write(folder / f"audio/{name}{number}.wav")

    def row(self, number: int, **changes: Any) -> dict[str, Any]:
        """A row as WavAlign released them."""
        one = self.shown[number]
        return {
            "messages": [{"role": "user", "content": "<|audio|>"}],
            "audios": [f"audio/question{number}.wav"],
            "sft_target_text": one.text,
            "sft_target_audio": f"audio/answer{number}.wav",
            "task_type": "s2s",
            "question_text": "two plus five",
            "facts": PROMPT_FACTS,
        } | changes

    @property
    def layout(self) -> WorldLayout:
        return WorldLayout(self.vocabulary.tokenizer)

    def codes(self, name: str) -> np.ndarray:
        """What the codec makes of a recording."""
        return self.codec.encode(Waveform.read(self.folder / name))

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
