"""The shipped world, read once."""

from pathlib import Path

import pytest

import playground
from playground.codec import PlaygroundCodec
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary

WORLD = Path(playground.__file__).parent / "world"


@pytest.fixture(scope="session")
def world() -> Path:
    return WORLD


@pytest.fixture(scope="session")
def codec(world: Path) -> PlaygroundCodec:
    return PlaygroundCodec.load(world / "codec")


@pytest.fixture(scope="session")
def vocabulary(world: Path) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
