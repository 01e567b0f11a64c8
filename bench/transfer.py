"""Seconds of a weight sync of a model of 0.5 B parameters, against a plain copy of the same bytes in memory.

The sender is the learner's, on a Hugging Face model with random weights; the receiver is a worker's engine in a process
of its own, which is idle. A sync is both: from weights in the sender's memory to an engine that would compute with
them. The probe is left out, as what it costs is a forward pass. Both sides have as many threads as the playground.
"""

import itertools
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch

from bench.fixtures import joined, playground
from bench.rows import BenchRow, row
from controller import build
from rollout.vllm_engine import process_environment
from speech.families import family
from weight_sync.broadcast import BroadcastSender
from weight_sync.senders import FileSender, ObjectSender, SharedMemorySender
from weight_sync.source import WeightSource
from weight_sync.update import WeightUpdate

GOAL = "≤ 4"
WAIT_SECONDS = 60.0
WARM = 1
ROUNDS = 3
"""Of each side in a repetition."""
QWEN2 = dict(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
"""The shape of Qwen2-0.5B: 494 million parameters, of which those of the output layer travel once more."""


class TransferReceiver:
    """A worker's engine without the worker, whose tokenizer the model has not."""

    def __init__(self, settings: Any, family: Any, tokens: str) -> None:
        from rollout.vllm_engine import VllmEngine
        from speech.vocabulary import Vocabulary

        self._engine = VllmEngine(settings, family, Vocabulary.from_checkpoint(Path(tokens), family.tokens), 0)

    def take(self, parcel: WeightUpdate) -> int:
        from weight_sync.receiver import fetch_files

        if parcel.call is not None:
            self._engine.take_broadcast(parcel, "bench")
        else:
            self._engine.load_weights(fetch_files(parcel, "bench"), parcel.version, whole=parcel.whole)
        return self._engine.weight_version


def measure(repeats: int) -> list[BenchRow]:
    """A sync through memory, through Ray's object store, and by broadcast, over the copy."""
    config = playground()
    chosen = family(config.model.family)
    usual = build.engine_settings(config, chosen)
    torch.set_num_threads(usual.num_threads)
    found: dict[str, list[float]] = {"shm": [], "object_store": [], "broadcast": []}
    with (
        tempfile.TemporaryDirectory() as checkpoint,
        joined(config),
        closing(SharedMemorySender("bench")) as memory,
        closing(ObjectSender()) as objects,
        closing(BroadcastSender("127.0.0.1", torch.device("cpu"))) as broadcast,
    ):
        model = _model(Path(checkpoint))
        settings = replace(
            usual, checkpoint=checkpoint, dtype="bfloat16", max_model_len=256, max_num_seqs=4, constrained=False
        )
        options = {"num_cpus": 0.1, "runtime_env": {"env_vars": process_environment(settings)}}
        receiver = ray.remote(TransferReceiver).options(**options).remote(settings, chosen, usual.checkpoint)
        senders: dict[str, FileSender | BroadcastSender] = {
            "shm": memory,
            "object_store": objects,
            "broadcast": broadcast,
        }
        versions = itertools.count(1)
        for turn in range(WARM + repeats):
            for kind, sender in senders.items():
                syncs, copies = [], []
                for _ in range(ROUNDS):
                    syncs.append(_sync(model, sender, receiver, next(versions)))
                    copies.append(_copy(model))
                if turn >= WARM:
                    # The fastest copy: now and then new memory takes several times as long on a virtual machine.
                    found[kind].append(median(syncs) / min(copies))
    return [
        row("weight sync / plain copy of the same bytes, through memory", found["shm"], GOAL),
        row("weight sync / plain copy of the same bytes, through Ray's object store", found["object_store"], ""),
        row("weight sync / plain copy of the same bytes, by broadcast", found["broadcast"], ""),
    ]


def _model(checkpoint: Path) -> torch.nn.Module:
    """Random weights, the same as in this folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**QWEN2)).to(torch.bfloat16)
    model.save_pretrained(checkpoint)
    return model


def _sync(model: torch.nn.Module, sender: FileSender | BroadcastSender, receiver: Any, version: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    source = WeightSource(model, sharded=False)
    if isinstance(sender, BroadcastSender):
        announced = sender.prepare(source.groups, version, whole=source.whole)
        call = replace(announced.call, number=version, receivers=("bench/0",), timeout_s=WAIT_SECONDS)
        answer = receiver.take.remote(replace(announced, call=call))
        if reason := sender.send(source.groups, source, call):
            raise RuntimeError(reason)
        taken = ray.get(answer)
    else:
        taken = ray.get(receiver.take.remote(sender.send(source.groups, source, version, whole=source.whole)))
    seconds = time.perf_counter() - begun
    if taken != version:
        raise RuntimeError(f"the engine holds version {taken}, and was given {version}")
    return seconds


def _copy(model: torch.nn.Module) -> float:
    """Seconds."""
    weights = [tensor for group in WeightSource(model, sharded=False) for tensor in list(group.values())]
    begun = time.perf_counter()
    copies = [tensor.clone() for tensor in weights]
    seconds = time.perf_counter() - begun
    del copies
    return seconds
