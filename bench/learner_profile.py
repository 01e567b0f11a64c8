"""What a learner's step spends its time on: `python -m bench.learner_profile`.

A step of the real rank on an iteration's replies, on one thread, by torch's profiler: shares of the time that operators
take themselves. How many products of matrices a second that makes stands beside what a single large product reaches.
"""

import time
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from bench.fixtures import apart, playground
from bench.learner import WARM, drawn, started
from learner.micro_batches import micro_batches

KINDS = {
    "products of matrices": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
}
"""Beginnings of operators' names, backward ones included."""
LARGE = 2048


def main() -> None:
    config = playground("algorithm.kl_coef_text=0", "algorithm.kl_coef_speech=0", "learner.warmup_steps=0")
    given = apart(drawn, config)
    rank = started(config)
    count = micro_batches([given], config.learner.max_tokens_per_micro_batch, packing=True)
    for _ in range(WARM):
        rank.step(given, count, 1.0)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        rank.step(given, count, 1.0)
    spent, products, operations = Counter[str](), 0.0, 0
    for event in profiled.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), "all else")
        spent[kind] += event.self_cpu_time_total
        if kind == "products of matrices":
            products, operations = products + event.self_cpu_time_total, operations + event.flops
    for kind, took in spent.most_common():
        print(f"{kind:<22}{took / spent.total():6.1%}")
    print(f"products of matrices: {operations / products / 1e3:.0f} GFLOP/s; one of {LARGE}²: {largest():.0f}")


def largest() -> float:
    """GFLOP/s of a large product, the best of some."""
    one, other = torch.randn(2, LARGE, LARGE)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        one @ other
        best = max(best, 2 * LARGE**3 / (time.perf_counter() - begun) / 1e9)
    return best


if __name__ == "__main__":
    main()
