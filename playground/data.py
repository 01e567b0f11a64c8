"""From the task's plans to token rows: speaking, encoding, interleaving, writing Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from data.records import DEMONSTRATIONS, PROMPTS
from playground import task
from playground.codec import PlaygroundCodec
from playground.voices import ANSWERING, MANNERS, Manner, say
from speech.audio import Waveform

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
BEGIN_AUDIO, END_AUDIO, AUDIO = "<|begin_of_audio|>", "<|end_of_audio|>", "<|audio_{}|>"
SPECIAL = (PAD, START, END, BEGIN_AUDIO, END_AUDIO)
TEXT_CHUNK, SPEECH_CHUNK = 2, 8
"""A chunk of a reply: text tokens, speech tokens (VITA-Audio's ratio list [2, 10], which counts the boundaries)."""


def make_tokenizer(codebook: int) -> Tokenizer:
    """Whole words and special tokens, the speech tokens contiguous at the end. Unknown words become <|pad|>."""
    words = (*task.OPENERS.values(), *task.CARRIER, *task.NUMBERS, *task.OPERATIONS, "or")
    codes = [AUDIO.format(code) for code in range(codebook)]
    names = [*SPECIAL, *words, *codes]
    tokenizer = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token=PAD))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    # For a Qwen2 checkpoint AutoTokenizer insists on Qwen2's byte-pair class and would split words into nothing.
    # Added tokens are found before any splitting, so both ways of loading encode alike. (Its decode sets no blanks.)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in words])
    tokenizer.add_tokens([AddedToken(code, normalized=False) for code in codes])
    return tokenizer


@dataclass(frozen=True)
class WorldLayout:
    """How prompts and replies are laid out in ids, for one tokenizer."""

    tokenizer: Tokenizer

    def id(self, name: str) -> int:
        found = self.tokenizer.token_to_id(name)
        if found is None:
            raise ValueError(f"the tokenizer has no token {name!r}")
        return found

    def prompt(self, codes: np.ndarray) -> list[int]:
        """<|im_start|> <|begin_of_audio|> codes <|end_of_audio|> <|im_start|>, as ids."""
        speech = (np.asarray(codes) + self.id(AUDIO.format(0))).tolist()
        return [self.id(START), self.id(BEGIN_AUDIO), *speech, self.id(END_AUDIO), self.id(START)]

    def reply(self, text: str, codes: np.ndarray) -> list[int]:
        """Chunks of 2 text and 8 speech tokens in turn, the speech left over in the last chunk, <|im_end|>."""
        words = [self.id(word) for word in text.split()]
        speech = (np.asarray(codes) + self.id(AUDIO.format(0))).tolist()
        chunks = -(-len(words) // TEXT_CHUNK)
        if len(speech) <= (chunks - 1) * SPEECH_CHUNK:
            raise ValueError(f"{len(speech)} speech tokens are too few for the {len(words)} words of {text!r}")
        ids: list[int] = []
        for chunk in range(chunks):
            start = chunk * SPEECH_CHUNK
            stop = start + SPEECH_CHUNK if chunk + 1 < chunks else len(speech)
            ids += words[chunk * TEXT_CHUNK : (chunk + 1) * TEXT_CHUNK]
            ids += [self.id(BEGIN_AUDIO), *speech[start:stop], self.id(END_AUDIO)]
        return [*ids, self.id(END)]


@dataclass(frozen=True)
class SpokenTakes:
    """Several recordings, as codes, of every line that a reply may say."""

    codes: dict[task.DialogueLine, list[np.ndarray]]

    def draw(self, line: task.DialogueLine, generator: np.random.Generator) -> np.ndarray:
        """The codes int64 [S] of one take of `line`."""
        takes = self.codes[line]
        return takes[generator.integers(len(takes))]


def speak_lines(takes: int, generator: np.random.Generator) -> dict[task.DialogueLine, list[Waveform]]:
    """`takes` recordings of each line, which differ a little in rate, in pitch and by the voice's flutter."""
    spoken: dict[task.DialogueLine, list[Waveform]] = {}
    for line in every_line():
        settings = [line.manner.draw(generator) for _ in range(takes)]
        spoken[line] = [say(line.text, ANSWERING, rate, pitch) for rate, pitch in settings]
    return spoken


def every_line() -> list[task.DialogueLine]:
    """Each answer in each manner."""
    return [task.line(answer, manner) for manner in MANNERS for answer in task.ANSWERS]


def speak_question(rendering: task.Rendering) -> Waveform:
    """The question as the caller asks it."""
    return say(rendering.fact.text, rendering.caller, rendering.rate, rendering.pitch)


def encode_questions(
    renderings: Iterable[task.Rendering], codec: PlaygroundCodec, layout: WorldLayout
) -> list[list[int]]:
    """Prompt ids of each rendering."""
    return [layout.prompt(codec.encode(speak_question(rendering))) for rendering in renderings]


def demonstration(
    rendering: task.Rendering, takes: SpokenTakes, layout: WorldLayout, generator: np.random.Generator
) -> tuple[task.DialogueLine, list[int]]:
    """One draw from the training source for a prompt: what is said and how, and the reply's ids."""
    line = task.draw_line(rendering.fact, rendering.manner, generator)
    return line, layout.reply(line.text, takes.draw(line, generator))


def write_prompts(
    path: Path, name: str, renderings: Sequence[task.Rendering], prompts: Sequence[list[int]]
) -> list[str]:
    """Writes a Parquet file of prompts and returns their ids, "name-00000" and so on."""
    ids = [f"{name}-{index:05d}" for index in range(len(renderings))]
    columns: dict[str, list[Any]] = {
        "id": ids,
        "token_ids": list(prompts),
        "text": [rendering.fact.text for rendering in renderings],
        "facts": [list(task.prompt_facts(rendering).items()) for rendering in renderings],
    }
    _write(path, columns, PROMPTS)
    return ids


def write_demonstrations(
    path: Path,
    prompt_ids: Sequence[str],
    prompts: Sequence[list[int]],
    replies: Sequence[tuple[task.DialogueLine, list[int]]],
) -> None:
    """Writes a Parquet file of demonstrations, one per prompt."""
    columns: dict[str, list[Any]] = {
        "prompt_id": list(prompt_ids),
        "prompt_ids": list(prompts),
        "reply_ids": [ids for _, ids in replies],
        "text": [line.text for line, _ in replies],
        "manner": [line.manner.name for line, _ in replies],
    }
    _write(path, columns, DEMONSTRATIONS)


def _write(path: Path, columns: dict[str, list[Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def manner_index(manner: Manner) -> tuple[int, int]:
    """(pitch, tempo) as 0 or 1, for the auxiliary targets of training: high 0, low 1; fast 0, slow 1."""
    return int(manner.pitch == "low"), int(manner.tempo == "slow")
