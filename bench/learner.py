"""The learner against a bare PyTorch loop, the memory of a large vocabulary, and what padding costs.

Replies are drawn by the real engine, with the playground's model and prompts. The rank is the real one, DeepSpeed
included, without Ray; the loop does nothing but forward, loss, backward and AdamW, on the same packed batch and with
the same attention. Neither compares with a start model. Memory is the peak of a process of its own.
"""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.fixtures import apart, playground
from bench.rows import BenchRow, row
from controller import build
from controller.inputs import read_inputs
from learner import micro_batches as learner_rows
from learner.collate import MicroBatch, collate
from learner.engine import LearnerEngine
from learner.losses import micro_batch_loss
from learner.micro_batches import micro_batches, split, tokens_of
from learner.packed_attention import use_packing
from learner.policy import PolicyModel
from speech.grammar import TokenKind, allowed_masks, token_kinds
from speech.vocabulary import Vocabulary

STEPS, WARM = 6, 2
VOCABULARY = 168_072
"""Of VITA-Audio (shared with its 16,384 speech codes)."""
SCORED, PROMPT, ROWS = 480, 32, 8
"""Reply tokens and prompt tokens of a row, and rows, where memory is measured."""
CPU = torch.device("cpu")


def drawn(config: Any) -> list[learner_rows.TrainingSample]:
    """An iteration's replies as rows to learn from."""
    from rollout.vllm_engine import VllmEngine

    inputs = read_inputs(config)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.path), inputs.family.tokens)
    kinds, pattern = token_kinds(vocabulary), inputs.family.interleave
    engine = VllmEngine(build.engine_settings(config, inputs.family), inputs.family, vocabulary, 0)
    prompts = inputs.prompts[: config.rollout.batch_size]
    sampling, seeds = build.sampling(config), list(range(0, 1000 * len(prompts), 1000))
    groups = engine.generate(prompts, config.rollout.n, sampling, seeds, "bench")
    return [
        learner_rows.TrainingSample(
            prompt_ids=group.prompt.token_ids,
            reply_ids=reply.token_ids,
            channels=reply.channels,
            allowed=allowed_masks(reply.token_ids, pattern, kinds),
            rollout_logprobs=reply.logps,
            advantages=(1.0 if reply.index % 2 else -1.0,),
            weights=(1.0 / len(prompts) / config.rollout.n / len(reply.token_ids),),
        )
        for group in groups
        for reply in group.replies
    ]


def speed(repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Learner tokens a second over those of the loop, the share of padding in what layers compute, and what they
    compute over the tokens of all rows, prompts that rows share counted each time."""
    from transformers import AutoModelForCausalLM

    config = playground("algorithm.kl_coef_text=0", "algorithm.kl_coef_speech=0", "learner.warmup_steps=0")
    given = apart(drawn, config)
    rank = started(config)

    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    use_packing(model)
    count = micro_batches([given], config.learner.max_tokens_per_micro_batch, packing=True)
    parts = split(given, count)
    batches = [collate(part, routes=1, temperature=1.0, device=CPU) for part in parts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learner.learning_rate)

    def bare() -> None:
        optimizer.zero_grad()
        for batch in batches:
            packing: Any = batch.packing
            where = {"position_ids": packing.positions, "packing": packing}
            hidden = model.model(input_ids=batch.input_ids, use_cache=False, **where)[0][0]
            scored = hidden.index_select(0, batch.sources)
            torch.nn.functional.cross_entropy(model.lm_head(scored), batch.targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.learner.max_grad_norm)
        optimizer.step()

    def ours() -> None:
        rank.step(given, count, 1.0)

    ratios = []
    for _ in range(repeats):
        pairs = [(seconds(bare), seconds(ours)) for _ in range(WARM + STEPS)][WARM:]
        ratios.append(median(loop / learner for loop, learner in pairs))
    computed = sum(batch.input_ids.numel() for batch in batches)
    different = sum(tokens_of(part) for part in parts)
    return ratios, [1.0 - different / computed], [computed / sum(map(len, given))]


def started(config: Any) -> LearnerEngine:
    """A rank by itself, in this process."""
    family = read_inputs(config).family
    rank = LearnerEngine(0, 1, build.rank_settings(config, "bench"), family, build.build_objective(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank.connect("127.0.0.1", port)
    return rank


def seconds(function: Callable[[], None]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def peak(full: bool) -> float:
    """Bytes that a process held at most over a step with a large vocabulary. full: all logits at once, of every token,
    as a causal language model of transformers returns them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )
    use_packing(model)
    kinds = torch.full((VOCABULARY,), int(TokenKind.TEXT), dtype=torch.int8)
    kinds[-16_384:] = int(TokenKind.SPEECH)
    scorer = PolicyModel(model, kinds)
    optimizer = torch.optim.AdamW(model.parameters())
    config = playground("algorithm.kl_coef_text=0", "algorithm.kl_coef_speech=0")
    batch = collate(made_up(), routes=1, temperature=1.0, device=CPU)
    for _ in range(2):
        logp, entropy = at_once(model, batch) if full else scorer(**batch.policy_inputs())
        loss, _ = micro_batch_loss(batch, logp, entropy, None, build.build_objective(config), 1.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(found.split()[1]) * 1024


def at_once(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """What `PolicyModel` computes, the plain way."""
    packing: Any = batch.packing
    where = {"position_ids": packing.positions, "packing": packing}
    logits = model(input_ids=batch.input_ids, use_cache=False, **where).logits[0].float()
    logps = torch.log_softmax(logits, dim=-1)[batch.sources]
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(-1, batch.targets[:, None])[:, 0], entropy


def made_up() -> list[learner_rows.TrainingSample]:
    rng = np.random.default_rng(0)
    return [
        learner_rows.TrainingSample(
            prompt_ids=rng.integers(0, VOCABULARY, PROMPT).astype(np.int32),
            reply_ids=rng.integers(0, VOCABULARY, SCORED).astype(np.int32),
            channels=np.zeros(SCORED, dtype=np.int8),
            rollout_logprobs=np.full(SCORED, -12.0, dtype=np.float32),
            advantages=(1.0,),
            weights=(1.0 / SCORED / ROWS,),
        )
        for _ in range(ROWS)
    ]


def measure(repeats: int) -> list[BenchRow]:
    """Speed and padding in one process, each peak in one of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    ratios, padding, computed = apart(speed, repeats)
    peaks = [(apart(peak, False), apart(peak, True)) for _ in range(repeats)]
    return [
        row("learner tokens/s / bare PyTorch", ratios, "≥ 0.9"),
        row("peak memory / all logits at once, vocabulary 168,072", [ours / full for ours, full in peaks], "≤ 0.35"),
        row("GiB of a step with that vocabulary", [ours / 2**30 for ours, _ in peaks], ""),
        row("padding, share of learner tokens", padding, "≤ 0.03"),
        row("tokens that layers compute / tokens of all rows", computed, ""),
    ]
