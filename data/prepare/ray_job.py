"""Slices of a source through Ray Data: each is read, encoded and written by one of a pool of actors."""

import json
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from data.prepare.encode import FEATURES, Encoder, EncodeResult, encode
from data.slices import FileSlice, as_text, from_text
from speech.families import Family
from speech.grammar import token_kinds
from speech.registry import build_codec, load_object
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class EncodingConfig:
    """What every actor needs, and where it writes."""

    family: Family
    checkpoint: str
    codec: str
    """module:Class."""
    codec_arguments: dict[str, Any]
    longest_prompt: int
    longest: int
    root: Path | None
    """The folder that names of recordings start from; None: that of the source file."""
    folder: Path
    hearing: str = ""
    """module:Class of the speech encoder; empty: none."""
    hearing_path: str = ""

    def encoder(self) -> Encoder:
        """Loads tokenizer, codec and speech encoder. Raises InputError."""
        vocabulary = Vocabulary.from_checkpoint(Path(self.checkpoint), self.family.tokens)
        return Encoder(
            family=self.family,
            vocabulary=vocabulary,
            codec=build_codec(self.codec, self.codec_arguments),
            hearing=load_object(self.hearing).load(Path(self.hearing_path)) if self.hearing else None,
            features=self.folder / FEATURES,
            structure=(self.family.interleave, token_kinds(vocabulary)),
            longest_prompt=self.longest_prompt,
            longest=self.longest,
        )


@dataclass(frozen=True, kw_only=True)
class EncodingPool:
    """How many encode at once, and with what."""

    workers: int
    cpus: float
    gpus: float
    seconds: float
    """Deadline for each slice."""


class EncodingActor:
    """What Ray Data makes an actor of."""

    def __init__(self, recipe: EncodingConfig) -> None:
        self._recipe, self._encoder = recipe, recipe.encoder()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """row: a slice and its number. Returns what became of it, or an error of the input."""
        recipe, number = self._recipe, int(row["number"])
        try:
            outcome = encode(self._encoder, from_text(row["slice"]), recipe.root, recipe.folder, number)
        except InputError as error:
            return {"number": number, "error": str(error), "outcome": ""}
        return {"number": number, "error": "", "outcome": json.dumps(vars(outcome))}


def encode_all(
    recipe: EncodingConfig, pieces: Sequence[FileSlice], pool: EncodingPool, done: Callable[[int], None]
) -> list[EncodeResult]:
    """What became of each slice, in their order. done: is told how many are.

    Raises InputError for a source that cannot be read, TimeoutError when no slice was finished within its deadline.
    Ray must have been joined.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"number": number, "slice": as_text(piece)} for number, piece in enumerate(pieces)]
    # A block for each: results come as slices are done, and no actor waits for another's.
    rows = ray.data.from_items(items, override_num_blocks=len(items)).map(
        EncodingActor,
        fn_constructor_args=(recipe,),
        compute=ray.data.ActorPoolStrategy(size=min(pool.workers, len(items))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    outcomes: dict[int, EncodeResult] = {}
    for row in _within(pool.seconds, rows.iter_rows):
        if row["error"]:
            raise InputError(row["error"])
        given = json.loads(row["outcome"])
        counts = {name: Counter(given.pop(name)) for name in ("written", "refused")}
        outcomes[row["number"]] = EncodeResult(**given, **counts)
        done(len(outcomes))
    return [outcomes[number] for number in range(len(pieces))]


def _within(seconds: float, rows: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Rows as they come, none of them later than so many seconds after the one before it."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = object()

    def fetch() -> None:
        try:
            for row in rows():
                found.put(row)
            found.put(end)
        except BaseException as error:  # is raised where the rows are waited for
            found.put(error)

    threading.Thread(target=fetch, name="prepare", daemon=True).start()
    while True:
        try:
            row = found.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"duet prepare: no part was finished within {seconds:g} s (--part-seconds)") from None
        if row is end:
            return
        if isinstance(row, BaseException):
            raise row
        yield row
