"""DNSMOS P.835 (Reddy et al. 2022, arXiv 2110.01763): predicted listener ratings, by Microsoft's published model.

Model file and calibration come from the package speechmos. The package itself is not imported: that takes 25 s, and
only its file is needed.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from speech.audio import Waveform

RATE = 16000
"""Sample rate of the model, Hz."""
WINDOW = 9.01
"""Length of the model's input, seconds."""
HOP = 4.5
"""Seconds between windows of longer audio. (speechmos uses 1, which costs four times as much.)"""
PARTS = {
    "sig": (0, (-0.08397278, 1.22083953, 0.0052439)),
    "bak": (1, (-0.13166888, 1.60915514, -0.39604546)),
    "ovr": (2, (-0.06766283, 1.11546468, 0.04602535)),
}
"""Speech, background noise and overall: index of the model's output, and its calibration polynomial."""


@cache
def _model() -> Any:  # onnxruntime.InferenceSession, imported on first use
    import onnxruntime

    spec = importlib.util.find_spec("speechmos")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("DNSMOS needs the model file of the package speechmos; install speechmos")
    file = Path(spec.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def dnsmos(waveform: Waveform, part: str = "sig") -> float:
    """Return the predicted mean opinion score, about 1..5. Raise ValueError for empty audio.

    Audio shorter than the model's window is repeated; longer audio gives the mean over half-overlapping windows. Each
    window takes about 0.2 s.

    Args:
        part: One of `PARTS`.
    """
    samples = waveform.at_rate(RATE).samples.astype(np.float32)
    if samples.size == 0:
        raise ValueError("signal quality of an empty waveform")
    output, polynomial = PARTS[part]
    window, hop = int(WINDOW * RATE), int(HOP * RATE)
    padded = np.tile(samples, -(-window // samples.size))[: max(window, samples.size)]
    session = _model()
    name = session.get_inputs()[0].name
    starts = range(0, len(padded) - window + 1, hop)
    raw = [float(session.run(None, {name: padded[None, start : start + window]})[0][0][output]) for start in starts]
    return float(np.mean(np.polyval(polynomial, raw)))
