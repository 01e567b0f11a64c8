"""The learning rate over a run. Pure."""

import math


def share(step: int, *, warmup: int, steps: int, final: float) -> float:
    """Share of the highest learning rate at a step, the first being 0: linear warm-up over `warmup` steps, then a
    cosine down to `final` at `steps`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
