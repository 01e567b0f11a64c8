"""Replies of a tiny checkpoint from the real engine, in a process of its own: `python -m tests.families.sampling`.

It is asked with an `Asked` on its standard input and answers with a `Found` on its standard output, both pickled.
"""

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from rollout.vllm_engine import EngineConfig, SamplingConfig, VllmEngine
from speech.audio import read_features
from speech.families import family
from speech.grammar import check_reply_grammar, grammar_table, token_kinds
from speech.types import Finish, Prompt, Reply
from speech.vocabulary import Vocabulary

REPLIES, FREE = 1000, 64
LONGEST = 30
ATONCE = 40
"""Logits of so many are below 32 MiB, the largest that the C library keeps for the next step."""


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


def ask(root: Path, asked: Asked) -> Found:
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=root,
        input=pickle.dumps(asked),
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return pickle.loads(done.stdout[done.stdout.index(b"\x80") :])


def answer(asked: Asked) -> Found:
    chosen = family(asked.family)
    vocabulary = Vocabulary.from_checkpoint(Path(asked.checkpoint), chosen.tokens)
    settings = EngineConfig(
        checkpoint=asked.checkpoint, dtype="float32", max_model_len=512, max_num_seqs=ATONCE, constrained=True,
        in_process=True, num_threads=2, cpu_kv_cache_gib=1.0, gpu_memory_utilization=0.3, tensor_parallel_size=1,
    )  # fmt: skip
    sampling = SamplingConfig(temperature=1.0, max_tokens=LONGEST)

    def draw(count: int, constrained: bool) -> list[tuple[Prompt, Reply]]:
        engine = VllmEngine(replace(settings, constrained=constrained), chosen, vocabulary, 0)
        each = -(-count // len(asked.prompts))
        groups = engine.generate(asked.prompts, each, sampling, list(range(len(asked.prompts))), "w")
        return [(group.prompt, reply) for group in groups for reply in group.replies][:count]

    held = draw(REPLIES, constrained=True)
    free = [reply for _, reply in draw(FREE, constrained=False)]
    kinds = token_kinds(vocabulary)
    # In a process without vLLM, which changes some of transformers' classes where both are.
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        gap = apart.submit(_gap, asked, held[::64]).result(timeout=100)
    return Found(
        gap=gap,
        held=[_so_far(reply, chosen.interleave, kinds) for _, reply in held],
        free=[reply.defect for reply in free],
        free_checked=[check_reply_grammar(reply.token_ids, chosen.interleave, kinds) for reply in free],
    )


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


def main() -> None:
    sys.stdout.buffer.write(pickle.dumps(answer(pickle.load(sys.stdin.buffer))))


if __name__ == "__main__":
    from tests.families import sampling  # what is pickled must not be of the module __main__

    sampling.main()
