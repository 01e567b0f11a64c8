"""Synthetic suites in the published layouts, and raters for their replies."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from reward.types import MissingScore, Score, SpokenReply

RATE = 16000
ARGUMENTS = pa.struct(
    [
        ("num_words", pa.int64()), ("relation", pa.string()), ("keywords", pa.list_(pa.string())),
        ("num_bullets", pa.int64()), ("end_phrase", pa.string()), ("language", pa.string()),
    ]
)  # fmt: skip
"""Struct with a field for each argument of every instruction, as published."""


def tone(hertz: float = 220.0, loudness: float = 0.3, seconds: float = 0.2) -> np.ndarray:
    """Return float32 [T] at RATE."""
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def voicebench(folder: Path, task: str, split: str, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    """Write a shard of a task. types: explicit types of columns that Arrow would infer wrongly."""
    path = folder / task / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "audio": pa.array(
            [row.get("audio", {"bytes": wav(tone(200.0 + place)), "path": None}) for place, row in enumerate(rows)],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    }
    for name in rows[0]:
        if name != "audio":
            columns[name] = pa.array([row[name] for row in rows], types.get(name))
    pq.write_table(pa.table(columns), path)
    return path


def ifeval(folder: Path, rows: list[tuple[str, list[tuple[str, dict[str, Any]]]]]) -> Path:
    """Write prompts with instructions and their arguments."""
    made = [
        {
            "key": 1000 + place,
            "prompt": prompt,
            "instruction_id_list": [name for name, _ in instructions],
            "kwargs": [arguments for _, arguments in instructions],
        }
        for place, (prompt, instructions) in enumerate(rows)
    ]
    return voicebench(folder, "ifeval", "test", made, kwargs=pa.list_(ARGUMENTS))


def openaudiobench(folder: Path, task: str, rows: list[dict[str, str]], sounds: dict[str, np.ndarray] | None) -> Path:
    """Write a task's CSV file and its recordings, by file name. None: no recording."""
    path = folder / "eval_datas" / task / f"{task}.csv"
    (path.parent / "audios").mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name, samples in (sounds or {}).items():
        soundfile.write(path.parent / "audios" / name, samples, RATE)
    return path


def vstyle(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the lines of one language, with a recording for each line that names one."""
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    path = folder / "metadata.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    for row in rows:
        if "instruction_audio_path" in row:
            soundfile.write(folder / "wav" / row["instruction_audio_path"], tone(), RATE)
    return path


def replies(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Loudness:
    """Judge of the audio: scores 1 + 10 · the largest sample."""

    name = "loudness"
    version = "loudness-1"

    def rate(self, spoken: SpokenReply) -> Score:
        if spoken.waveform is None:
            return MissingScore("no speech in the reply")
        return round(1.0 + 10.0 * float(np.abs(spoken.waveform.samples).max()), 2)


class Reader:
    """Judge of the text: 5 for the reference, 9 for "nine", 2 otherwise."""

    name = "reader"
    version = "reader-1"

    def rate(self, spoken: SpokenReply) -> Score:
        if "broken" in spoken.text:
            raise RuntimeError("told to fail")
        if spoken.text == "nine":
            return 9.0
        return 5.0 if spoken.prompt.facts.get("reference", "good") in spoken.text else 2.0
