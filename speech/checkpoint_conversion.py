"""Checkpoints between their released layout (`speech.released_layout`) and the trunk that is trained, a file at a time.

    released ──import──▶ trunk, with a note of where it came from ──training──▶ trunk ──export──▶ released

What is no part of the trunk is not copied on the way in, and comes from the released files on the way out.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from common.errors import InputError
from common.files import parse_json, read_text
from speech.checkpoint import TOKENIZER, load_tokenizer
from speech.released_layout import ReleasedLayout

ORIGIN = "duet.json"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class ReleasedOrigin:
    """Where an imported checkpoint came from; in its `duet.json`."""

    family: str
    released: str
    """Directory of the released checkpoint."""


def read_config(directory: Path) -> dict[str, Any]:
    """A checkpoint's config.json. Raises InputError."""
    found = parse_json(read_text(directory / "config.json"), str(directory / "config.json"))
    if not isinstance(found, dict):
        raise InputError(f"{directory / 'config.json'} is not a JSON object")
    return found


def read_origin(directory: Path) -> ReleasedOrigin | None:
    """None for a checkpoint that was not imported. Raises InputError."""
    if not (directory / ORIGIN).is_file():
        return None
    found = parse_json(read_text(directory / ORIGIN), str(directory / ORIGIN))
    try:
        return ReleasedOrigin(family=str(found["family"]), released=str(found["released"]))
    except (TypeError, KeyError) as error:
        raise InputError(f"{directory / ORIGIN} does not say where the checkpoint came from: {error!r}") from error


def import_checkpoint(released: Path, original: ReleasedLayout, family: str, directory: Path) -> int:
    """Writes the trunk of a released checkpoint as one that transformers and vLLM read. Returns how many tensors there
    were that are no part of it.

    Raises InputError for another kind of checkpoint, and when the trunk is not whole.
    """
    config = read_config(released)
    if (found := config.get("model_type")) not in original.model_types:
        raise InputError(
            f"{released / 'config.json'}: model_type is {found!r}; family {family} comes as "
            f"{' or '.join(original.model_types)}"
        )
    try:
        trunk = original.config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{released / 'config.json'} lacks a setting of family {family}: {error!r}") from error
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(trunk, indent=2) + "\n")
    load_tokenizer(released, original.division).save(str(directory / TOKENIZER))
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, str] = {}
    others = 0
    for file in _files(released):
        taken: dict[str, Tensor] = {}
        for name, tensor in _tensors(file):
            parts = original.parts(name, config)
            others += not parts
            rows = [len(tensor) if part.rows is None else part.rows for part in parts]
            if parts and sum(rows) != len(tensor):
                raise InputError(f"{file}: {name} has {len(tensor)} rows; config.json says {sum(rows)}")
            for part, piece in zip(parts, tensor.split(rows) if parts else (), strict=True):
                taken[part.name] = piece.contiguous()
        if taken:
            save_file(taken, directory / file.name, metadata={"format": "pt"})
        shapes |= {name: tuple(tensor.shape) for name, tensor in taken.items()}
        places |= dict.fromkeys(taken, file.name)
    _check_whole(directory, shapes)
    _write_index(directory, places)
    (directory / ORIGIN).write_text(
        json.dumps(asdict(ReleasedOrigin(family=family, released=str(released.resolve()))), indent=2)
    )
    return others


def export_checkpoint(trained: Path, released: Path, original: ReleasedLayout, directory: Path) -> None:
    """Writes a released checkpoint anew, with the trained trunk in its place. Raises InputError."""
    config = read_config(released)
    weights = _Weights(trained)
    directory.mkdir(parents=True, exist_ok=True)
    for file in sorted(released.iterdir()):
        if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
            shutil.copy(file, directory / file.name)
    for file in _files(released):
        written = {}
        for name, tensor in _tensors(file):
            parts = original.parts(name, config)
            new = torch.cat([weights[part.name] for part in parts]) if parts else tensor
            if new.shape != tensor.shape:
                raise InputError(f"{trained}: {name} would be {list(new.shape)}, and is {list(tensor.shape)} in {file}")
            written[name] = new.to(tensor.dtype).contiguous()
        save_file(written, directory / file.name, metadata={"format": "pt"})


class _Weights:
    """Tensors of a checkpoint by name, whichever of its files they are in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._places: dict[str, Path] = {}
        for file in _files(directory):
            with _opened(file) as tensors:
                self._places |= dict.fromkeys(tensors.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._places:
            raise InputError(f"{self._directory} has no tensor {name}")
        with _opened(self._places[name]) as tensors:
            return tensors.get_tensor(name)


def _files(directory: Path) -> list[Path]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise InputError(f"{directory} holds no *.safetensors file")
    return files


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118  # not a dictionary
            yield name, tensors.get_tensor(name)


def _check_whole(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises InputError unless the tensors are those that transformers' model has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(directory)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight", None)
    for name in sorted(expected.keys() | (shapes.keys() - {"lm_head.weight"})):
        if shapes.get(name) != expected.get(name):
            raise InputError(
                f"the released checkpoint gives {name} {_shape(shapes.get(name))}; its trunk has "
                f"{_shape(expected.get(name))}"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nowhere" if shape is None else f"as {list(shape)}"


def _write_index(directory: Path, places: Mapping[str, str]) -> None:
    """What tells which file a tensor is in, where there are several."""
    if len(set(places.values())) > 1:
        (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict(places)}, indent=2))
    else:
        (only,) = set(places.values())
        (directory / only).rename(directory / "model.safetensors")
