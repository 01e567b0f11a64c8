"""Replies of a tiny checkpoint from the real engine, against plain transformers.

Each of the two has a process: vLLM changes some of transformers' classes where both are. `Processes` keeps them, so
that all families of a session import either library once.
"""

import gc
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rollout.vllm_engine import EngineConfig, SamplingConfig, VllmEngine
from speech.audio import read_features
from speech.families import family
from speech.grammar import check_reply_grammar, grammar_table, token_kinds
from speech.types import Finish, Prompt, Reply
from speech.vocabulary import Vocabulary

REPLIES, FREE, COMPARED = 32, 8, 4
"""Replies held to the structure, replies that are not, and those of the former that transformers computes again."""
LONGEST = 30
SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    family: str
    checkpoint: str
    prompts: list[Prompt]


@dataclass(frozen=True, kw_only=True)
class Found:
    gap: float
    """Largest difference of a log-probability between plain transformers and the engine."""
    held: list[str | None]
    """Defects of replies that were held to the structure; those that were cut off count as far as they go."""
    free: list[str | None]
    """Defects, as the engine marked them, of replies that were not."""
    free_checked: list[str | None]
    """The same by a walk of the automaton itself."""


class Processes:
    """A process with vLLM and one with plain transformers, each started when it is first asked. A context manager."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._engine, self._plain = (ProcessPoolExecutor(1, context, initializer=_end_with_parent) for _ in range(2))

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._engine, self._plain):
            pool.shutdown(cancel_futures=True)

    def ask(self, asked: Asked) -> Found:
        held, free = self._engine.submit(_sample, asked).result(SECONDS)
        chosen = family(asked.family)
        kinds = token_kinds(Vocabulary.from_checkpoint(Path(asked.checkpoint), chosen.tokens))
        compared = held[:: len(held) // COMPARED]
        return Found(
            gap=self._plain.submit(_gap, asked, compared).result(SECONDS),
            held=[_so_far(reply, chosen.interleave, kinds) for _, reply in held],
            free=[reply.defect for _, reply in free],
            free_checked=[check_reply_grammar(reply.token_ids, chosen.interleave, kinds) for _, reply in free],
        )


def _end_with_parent() -> None:
    """Ends this process when its parent is killed, which a pool's process outlives otherwise."""

    def watch() -> None:
        parent.join()
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=watch, daemon=True).start()


def _sample(asked: Asked) -> tuple[list[tuple[Prompt, Reply]], list[tuple[Prompt, Reply]]]:
    """Replies held to the structure, and replies that are not, each with its prompt."""
    chosen = family(asked.family)
    vocabulary = Vocabulary.from_checkpoint(Path(asked.checkpoint), chosen.tokens)
    settings = EngineConfig(
        checkpoint=asked.checkpoint, dtype="float32", max_model_len=512, max_num_seqs=REPLIES, constrained=True,
        in_process=True, num_threads=2, cpu_kv_cache_gib=1.0, gpu_memory_utilization=0.3, tensor_parallel_size=1,
    )  # fmt: skip
    sampling = SamplingConfig(temperature=1.0, max_tokens=LONGEST)

    def draw(count: int, constrained: bool) -> list[tuple[Prompt, Reply]]:
        engine = VllmEngine(replace(settings, constrained=constrained), chosen, vocabulary, 0)
        prompts = asked.prompts[:count]
        groups = engine.generate(prompts, -(-count // len(prompts)), sampling, list(range(len(prompts))), "w")
        del engine
        gc.collect()  # its keys and values, before there are those of another
        return [(group.prompt, reply) for group in groups for reply in group.replies][:count]

    return draw(REPLIES, constrained=True), draw(FREE, constrained=False)


def _so_far(reply: Reply, pattern, kinds: np.ndarray) -> str | None:
    """What the structure does not allow; a reply that is cut off need not have come to its end."""
    if reply.finish is Finish.STOP:
        return reply.defect
    defect = check_reply_grammar(reply.token_ids, pattern, kinds)
    return None if defect == "the reply has no end" else defect


def _gap(asked: Asked, replies: list[tuple[Prompt, Reply]]) -> float:
    """Against transformers' own forward, with the structure's mask, one reply at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    chosen = family(asked.family)
    vocabulary = Vocabulary.from_checkpoint(Path(asked.checkpoint), chosen.tokens)
    pattern, kinds = chosen.interleave, token_kinds(vocabulary)
    model = AutoModelForCausalLM.from_pretrained(asked.checkpoint, dtype=torch.float32)
    states, largest = grammar_table(pattern), 0.0
    for prompt, reply in replies:
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, reply.token_ids]).astype(np.int64))
        with torch.no_grad():
            embedded = model.get_input_embeddings()(ids).clone()
            if prompt.features is not None:
                slots = torch.from_numpy(np.flatnonzero(prompt.token_ids == vocabulary.slot))
                embedded[slots] = torch.from_numpy(read_features(prompt.features, len(slots)))
            logits = model(inputs_embeds=embedded[None]).logits[0].double()
        state, first = 0, len(prompt.token_ids)
        for position, token in enumerate(reply.token_ids.tolist()):
            allowed = torch.from_numpy((kinds & states.allowed[state]) != 0)
            row = logits[first + position - 1].masked_fill(~allowed, float("-inf")).log_softmax(-1)
            largest = max(largest, abs(float(row[token]) - float(reply.logps[position])))
            state = states.after[state][int(kinds[token])]
    return largest
