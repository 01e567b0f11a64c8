"""DNSMOS P.835 (Reddy et al. 2022, arXiv 2110.01763): how listeners would rate a signal, by Microsoft's
published model.

The model file and its calibration are those of the package speechmos, which is not imported itself: its own imports
take 25 s, and all that is needed of it is the file.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speech.audio import Waveform

RATE = 16000
"""Samples per second that the model hears."""
WINDOW = 9.01
"""Seconds that it hears at once."""
HOP = 4.5
"""Seconds between the windows of a longer sound. (speechmos takes 1, which costs four times as much.)"""
PARTS = {
    "sig": (0, (-0.08397278, 1.22083953, 0.0052439)),
    "bak": (1, (-0.13166888, 1.60915514, -0.39604546)),
    "ovr": (2, (-0.06766283, 1.11546468, 0.04602535)),
}
"""Speech, background noise, and overall: place among the model's outputs, and the polynomial that calibrates it."""


@cache
def _model() -> Any:  # an onnxruntime.InferenceSession; onnxruntime is imported only where this measure is taken
    import onnxruntime

    found = importlib.util.find_spec("speechmos")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("signal quality needs the package speechmos for its DNSMOS model file")
    file = Path(found.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def dnsmos(waveform: Waveform, part: str = "sig") -> float:
    """About 1..5. part: one of `PARTS`.

    A sound shorter than the model's window is repeated; of a longer one the mean over half-overlapping windows is
    taken. Some 0.2 s a window. Raises ValueError for empty audio.
    """
    samples = waveform.at_rate(RATE).samples.astype(np.float32)
    if samples.size == 0:
        raise ValueError("signal quality of an empty waveform")
    place, polynomial = PARTS[part]
    needed, hop = int(WINDOW * RATE), int(HOP * RATE)
    whole = np.tile(samples, -(-needed // samples.size))[: max(needed, samples.size)]
    session = _model()
    name = session.get_inputs()[0].name
    starts = range(0, len(whole) - needed + 1, hop)
    raw = [float(session.run(None, {name: whole[None, start : start + needed]})[0][0][place]) for start in starts]
    return float(np.mean(np.polyval(polynomial, raw)))
