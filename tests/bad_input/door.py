"""A valid setup to break, and checks that broken input is rejected with one good sentence."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from common.errors import InputError
from configs.load import load_config
from controller.inputs import RunInputs, read_inputs

SECONDS = 20.0
"""Longer than this is a hang: a good configuration is read and checked in less than a second."""
ROWS = 24
"""Rows of each data file; a valid run needs 16 prompts an iteration."""


@cache
def _few(path: Path) -> pa.Table:
    return pq.read_table(path).slice(0, ROWS)


@cache
def _few_bytes(path: Path) -> bytes:
    written = pa.BufferOutputStream()
    pq.write_table(_few(path), written)
    return written.getvalue().to_pybytes()


class Setup:
    """A configuration, data and a checkpoint, valid until a test breaks something."""

    def __init__(self, folder: Path, world: Path, root: Path) -> None:
        self.folder, self._world = folder, world
        self.base = folder / "base"
        self.config = folder / "mine.yaml"
        self.runs = folder / "runs"
        self.base.mkdir()
        for file in (world / "base").iterdir():
            (self.base / file.name).symlink_to(file)
        for name in ("train", "demonstrations", "held_out"):
            self.data(name).write_bytes(_few_bytes(world / f"data/{name}.parquet"))
        self.settings = {
            "extends": str(root / "configs/playground.yaml"),
            "run": {"directory": str(self.runs), "name": "bad"},
            "model": {"path": str(self.base)},
            "data": {
                "prompts": str(self.data("train")),
                "sft": str(self.data("demonstrations")),
                "validation": {"held_out": str(self.data("held_out"))},
            },
            "reward": {
                "codec": {"target": "playground.codec:PlaygroundCodec", "kwargs": {"path": str(world / "codec")}}
            },
        }
        self.config.write_text(yaml.safe_dump(self.settings))

    def data(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    def table(self, name: str) -> pa.Table:
        """A few good rows of the shipped world."""
        return _few(self._world / f"data/{name}.parquet")

    def own(self, name: str) -> Path:
        """Replace the link to a checkpoint file by a copy that the test may change."""
        path = self.base / name
        source = path.resolve()
        path.unlink()
        shutil.copy(source, path)
        return path

    def edit(self, name: str, change: Callable[[dict], Any]) -> None:
        """Change a JSON file of the checkpoint in place; a value that the change returns replaces it."""
        path = self.own(name)
        content = json.loads(path.read_text())
        replaced = change(content)
        path.write_text(json.dumps(content if replaced is None else replaced))

    def enter(self, *overrides: str, config: Path | None = None) -> RunInputs:
        """Read and check the configuration and its data, as `duet train` does."""
        return read_inputs(load_config(config or self.config, list(overrides)))


def refused(folder: Path, act: Callable[[], Any], *mentions: str) -> str:
    """Assert that `act` ends in one good sentence, soon, and with every file below `folder` as it was.

    mentions: what the sentence must name. Returns it.
    """
    before, start = contents(folder), time.perf_counter()
    try:
        act()
    except InputError as error:
        message = sound(error)
    else:
        raise AssertionError(f"taken, though it should be refused with: {', '.join(mentions)}")
    assert time.perf_counter() - start < SECONDS
    assert contents(folder) == before, "a refusal changes nothing"
    for words in mentions:
        assert words in message, f"{words!r} is not said in: {message}"
    return message


def refused_or_read(folder: Path, act: Callable[[], Any]) -> Any | None:
    """Return the result of valid input, None for input rejected with one good sentence. Anything else fails."""
    before, start = contents(folder), time.perf_counter()
    try:
        result = act()
    except InputError as error:
        sound(error)
        result = None
    assert time.perf_counter() - start < SECONDS
    assert contents(folder) == before, "reading changes nothing"
    return result


def sound(error: InputError) -> str:
    """The message, which must be one line that a terminal shows as it is, and says something."""
    message = str(error)
    assert type(error) is InputError
    assert len(message) > 10
    assert message.isprintable(), repr(message)
    return message


def contents(folder: Path) -> dict[str, str]:
    """Return digests of all files below by name, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "other"
    return found
