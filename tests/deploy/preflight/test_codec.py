"""The codec's round trip: the world's own, and others that go wrong in each way."""

import numpy as np
import pytest

from data.records import read_demonstrations
from deploy.preflight.finding import Severity
from deploy.preflight.model import check_codec, distance
from playground.codec import PlaygroundCodec
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary
from tests.deploy.preflight.cases import all_fine, only


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def demonstrations(world, vocabulary):
    return read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:2]


class Codec:
    """The world's codec, with a fault."""

    def __init__(self, world, **changes) -> None:
        self._own = PlaygroundCodec.load(world / "codec")
        self.rate, self.codebook = self._own.rate, self._own.codebook
        self.tokens_per_second, self.version = self._own.tokens_per_second, "broken-1"
        self.decode, self.encode = self._own.decode, self._own.encode
        vars(self).update(changes)


def test_the_worlds_codec_is_fine(world, vocabulary, demonstrations):
    (finding,) = all_fine(check_codec(PlaygroundCodec.load(world / "codec"), vocabulary, demonstrations))
    assert "16,000 Hz, 25 tokens/s; round trip of 2 demonstrations" in finding.text
    assert "of the codes are the same" in finding.text


def raising(*_: object) -> None:
    raise RuntimeError("no weights")


def sounding(samples: np.ndarray, rate: int = 16000):
    return lambda codes: Waveform(samples.astype(np.float32), rate)


NOISE = np.random.default_rng(0).normal(0, 0.1, 16000)


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({"rate": 0}, Severity.ERROR, "it reports 0 Hz"),
        ({"decode": raising}, Severity.ERROR, "it cannot decode the demonstration of train-00000: RuntimeError"),
        ({"decode": sounding(NOISE, 22050)}, Severity.ERROR, "22050 Hz, but the codec reports 16000 Hz"),
        ({"decode": sounding(np.zeros(16000))}, Severity.ERROR, "decodes to silence"),
        ({"decode": sounding(np.zeros(0))}, Severity.ERROR, "decodes to no samples"),
        ({"decode": sounding(NOISE * np.nan)}, Severity.ERROR, "samples that are not finite"),
        ({"encode": raising}, Severity.WARNING, "it cannot encode: RuntimeError"),
        ({"encode": lambda sound: np.array([0, 512])}, Severity.ERROR, "which are not codes in [0, 512)"),
        ({"encode": lambda sound: np.zeros((2, 3), int)}, Severity.ERROR, "which are not codes in [0, 512)"),
        ({"tokens_per_second": 50.0}, Severity.WARNING, "tokens longer or shorter than 50 tokens/s predict"),
    ],
)
def test_every_fault_of_a_codec_is_found(world, vocabulary, demonstrations, changes, state, said):
    assert said in only(check_codec(Codec(world, **changes), vocabulary, demonstrations), state).text


def test_the_distance_of_two_sounds():
    assert distance(NOISE, NOISE) == 0.0
    assert distance(NOISE, NOISE / 10) == pytest.approx(20.0, abs=0.1)
