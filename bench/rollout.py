"""Tokens a second through one rollout worker, against plain `vllm.LLM.generate`.

All sides hold the same checkpoint with the same engine arguments and threads, each in a process of its own, and answer
the same prompts in turn while the others are idle. The worker is the real actor, asked through Ray, its replies taken
over by the caller. Plain is vLLM as one would call it by hand, its outputs left as they are, timed inside its process.
"""

import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import ray

from bench.fixtures import joined, playground
from bench.rows import BenchRow, row
from controller import build
from controller.inputs import read_inputs
from rollout.pool import MIN_RUN_S
from rollout.vllm_engine import RolloutRequest
from rollout.worker import RolloutWorker
from speech.types import Prompt, Reply

GOAL = "≥ 0.95"
SEQUENCES = (64, 256)
"""Replies of a batch: an iteration of the playground, and a full engine."""
GROUP = 4
WARM = 2
ROUNDS = 3
"""Of each side in a repetition, whose median counts."""


class PlainVllm:
    """vLLM alone, in an actor only to have a process of its own like the worker's."""

    def __init__(self, settings: Any, family: Any) -> None:
        from rollout.vllm_engine import VllmEngine
        from speech.vocabulary import Vocabulary

        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._llm = VllmEngine(settings, family, self._vocabulary, 0)._llm

    def generate(self, prompts: list[list[int]], max_tokens: int, seeds: list[int] | None) -> float:
        """Tokens a second. seeds: one a prompt, with log-probabilities, as a worker asks for; None: neither."""
        from vllm import SamplingParams

        own = [{} for _ in prompts] if seeds is None else [{"seed": seed, "logprobs": 0} for seed in seeds]
        stop = [self._vocabulary.end_reply]
        parameters = [
            SamplingParams(
                n=GROUP, temperature=1.0, max_tokens=max_tokens, stop_token_ids=stop, detokenize=False, **more
            )
            for more in own
        ]
        begun = time.perf_counter()
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
        seconds = time.perf_counter() - begun
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs) / seconds


@dataclass(frozen=True)
class Engines:
    """The actors, and how each is asked for the replies to some prompts: tokens a second."""

    worker: Any
    free: Any
    held: Any
    sampling: Any

    def ours(self, prompts: list[Prompt], seeds: list[int]) -> float:
        orders = [
            RolloutRequest(number=number, prompt=prompt, group_size=GROUP, sampling=self.sampling, seed=seed)
            for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        begun = time.perf_counter()
        # As a pool asks: two questions are always with it.
        asked = deque([self.worker.run_for.remote(orders, MIN_RUN_S), self.worker.run_for.remote([], MIN_RUN_S)])
        replies: list[Reply] = []
        while len(replies) < GROUP * len(prompts):
            replies += [reply for _, reply in ray.get(asked.popleft()).replies]
            asked.append(self.worker.run_for.remote([], MIN_RUN_S))
        seconds = time.perf_counter() - begun
        ray.get(list(asked))
        return sum(len(reply.token_ids) for reply in replies) / seconds

    def plain(self, kind: str, prompts: list[Prompt], seeds: list[int]) -> float:
        """kind: "same sampling" (seeds and log-probabilities, held to nothing), "structure" (held as well), "bare"."""
        side = self.held if kind == "structure" else self.free
        ids = [prompt.token_ids.tolist() for prompt in prompts]
        return ray.get(side.generate.remote(ids, self.sampling.max_tokens, None if kind == "bare" else seeds))


def measure(repeats: int) -> list[BenchRow]:
    """The worker's rate over that of each plain kind, at an iteration's size and with the engine full."""
    config = playground()
    inputs = read_inputs(config)
    settings = build.engine_settings(config, inputs.family)
    options = {"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(settings.num_threads)}}}
    rows = []
    with joined(config):
        sides = Engines(
            ray.remote(RolloutWorker)
            .options(**options)
            .remote("rollout-0", settings, inputs.family, 0, "127.0.0.1", ""),
            ray.remote(PlainVllm).options(**options).remote(replace(settings, constrained=False), inputs.family),
            ray.remote(PlainVllm).options(**options).remote(settings, inputs.family),
            build.sampling(config),
        )
        kinds = {"worker": sides.ours} | {k: partial(sides.plain, k) for k in ("same sampling", "structure", "bare")}
        for count in SEQUENCES:
            found: dict[str, list[float]] = {kind: [] for kind in kinds}
            for turn in range(WARM + ROUNDS * repeats):
                seeds = [count * turn + i for i in range(count // GROUP)]
                prompts = [inputs.prompts[seed % len(inputs.prompts)] for seed in seeds]
                for kind, ask in kinds.items():
                    found[kind].append(ask(prompts, seeds))
            ratios = {kind: _medians(found["worker"][WARM:], found[kind][WARM:]) for kind in kinds if kind != "worker"}
            what = f"{count} replies at once"
            rows.append(row(f"worker / plain vLLM, {what}", ratios["same sampling"], GOAL))
            rows.append(row(f"worker / plain vLLM held to the structure, {what}", ratios["structure"], ""))
            rows.append(row(f"worker / plain vLLM without seeds and log-probabilities, {what}", ratios["bare"], ""))
            rows.append(row(f"tokens a second of the worker, {what}", found["worker"][WARM:], ""))
    return rows


def _medians(ours: list[float], others: list[float]) -> list[float]:
    """A ratio for each repetition."""
    pairs = [one / other for one, other in zip(ours, others, strict=True)]
    return [median(pairs[start : start + ROUNDS]) for start in range(0, len(pairs), ROUNDS)]
