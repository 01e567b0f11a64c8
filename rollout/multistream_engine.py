"""An engine for models with several streams, of which vLLM serves only one. Runs the learner's model class.

Running replies are batched continuously, one step at a time, up to the number of KV cache rows. A prompt is computed
once for all replies of its group that start with the same weights. Interface and behaviour are those of
`rollout.vllm_engine.VllmEngine`. Without Ray and vLLM.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from common.errors import InputError
from rollout.multistream_sampler import MultiStreamSampler
from rollout.vllm_engine import EngineConfig, PartialWeightUpdate, RolloutRequest, SamplingConfig, generate_groups
from speech.families import Family
from speech.grammar import check_reply_grammar, token_kinds
from speech.modeling import load_pretrained
from speech.types import Finish, Prompt, Reply, ReplyGroup
from speech.vocabulary import Vocabulary
from weight_sync.lora_merge import merge_lora


class KVCache:
    """Preallocated KV cache in the shape transformers expects. The caller maps rows to replies, with the rows in use
    first. A step is one token of each stream."""

    def __init__(
        self, *, layers: int, rows: int, heads: int, steps: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """heads, width: shape of a layer's keys. steps: capacity of a row."""
        self._rows = torch.arange(rows, device=device)
        self._both = [torch.zeros(2, rows, heads, steps, width, dtype=dtype, device=device) for _ in range(layers)]
        """Keys and values by layer."""
        self._lengths = torch.zeros(0, dtype=torch.int64, device=device)
        self._longest = 0

    @staticmethod
    def row_bytes(*, layers: int, heads: int, steps: int, width: int, dtype: torch.dtype) -> int:
        """Return the size of one row."""
        return 2 * layers * heads * steps * width * dtype.itemsize

    def begin(self, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Begin a step of the first n rows, which hold `lengths` steps. Return positions int64 [n, 1] and the attention
        mask bool [n, 1, 1, longest]."""
        self._lengths = torch.tensor(lengths, device=self._rows.device)
        self._longest = max(lengths) + 1
        seen = torch.arange(self._longest, device=self._rows.device) <= self._lengths[:, None]
        return self._lengths[:, None], seen[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store a step's [n, heads, 1, width]. Return all [n, heads, longest, width]. Called by transformers."""
        rows = self._rows[: len(self._lengths)]
        both = self._both[layer]
        both[0, rows, :, self._lengths] = keys[:, :, 0]
        both[1, rows, :, self._lengths] = values[:, :, 0]
        return both[0, : len(rows), :, : self._longest], both[1, : len(rows), :, : self._longest]

    def put(self, row: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the first steps of a row: [heads, steps, width]."""
        self._both[layer][0, row, :, : keys.shape[1]] = keys
        self._both[layer][1, row, :, : keys.shape[1]] = values

    def copy(self, row: int, target: int, steps: int) -> None:
        """Copy the first steps of a row to another."""
        for both in self._both:
            both[:, target, :, :steps] = both[:, row, :, :steps]


MAX_LOGITS = 2**25
"""Logits held at once by `probe`."""


@dataclass(kw_only=True, eq=False)
class RunningReply:
    """State of a running reply."""

    request: RolloutRequest
    index: int
    generator: np.random.Generator
    max_steps: int
    pending: list[int]
    """Ids of the model's next step."""
    length: int
    """Steps in the KV cache."""
    prompt_version: int
    """Weight version that computed its prompt."""
    state: int = 0
    """Grammar state."""
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: tuple[int, int] | None = None
    """Weight versions of its first and last token."""
    finish: Finish | None = None


class MultiStreamEngine:
    """A loaded model. Until the first update it holds the checkpoint's weights as version 0."""

    def __init__(self, config: EngineConfig, family: Family, vocabulary: Vocabulary) -> None:
        if config.tensor_parallel_size > 1:
            raise InputError(
                f"rollout.tensor_parallel_size: {config.tensor_parallel_size}, but the engine of family {family.name} "
                "keeps "
                "its model on one device; set it to 1"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(config.num_threads)
        self._streams, self._vocabulary, self._pattern = family.streams, vocabulary, family.interleave
        self._kinds, self._channels = token_kinds(vocabulary), vocabulary.channel_table()
        self._max_model_len = config.max_model_len
        dtype = getattr(torch, config.dtype)
        model = load_pretrained(config.checkpoint, family, dtype=dtype, trust_remote_code=config.trust_remote_code)
        self._checkpoint = Path(config.checkpoint)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._sampler = MultiStreamSampler(
            family.interleave, self._kinds, family.streams, constrained=config.constrained, device=self._device
        )
        self._rows, self._cache = self._allocate_cache(config)
        self._version = 0
        self._waiting: deque[tuple[RolloutRequest, int]] = deque()
        self._running: list[RunningReply] = []
        """By row of the KV cache."""
        self._finished: list[RunningReply] = []

    def _allocate_cache(self, config: EngineConfig) -> tuple[int, KVCache]:
        """Allocate the KV cache. Return the number of rows and the cache. Raise InputError without memory for one
        row."""
        model, parameter = self._model.config, next(self._model.parameters())
        shape = {
            "layers": sum(1 for module in self._model.modules() if hasattr(module, "layer_idx")),
            "heads": model.num_key_value_heads,
            "steps": config.max_model_len // self._streams,
            "width": getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads,
        }
        key, value, memory = "rollout.cpu_kv_cache_gib", config.cpu_kv_cache_gib, config.cpu_kv_cache_gib * 2**30
        if self._device.type == "cuda":
            # Sampling needs a few arrays of the size of all replies' logits.
            total, used = torch.cuda.mem_get_info(self._device)[1], torch.cuda.memory_allocated(self._device)
            logits = 4.0 * 4 * config.max_num_seqs * model.vocab_size
            key, value = "rollout.gpu_memory_utilization", config.gpu_memory_utilization
            memory = total * value - used - logits
        rows = min(config.max_num_seqs, int(memory // KVCache.row_bytes(**shape, dtype=parameter.dtype)))
        if rows < 1:
            raise InputError(
                f"{key}: {value:g} leaves no memory for the KV cache of one reply of model.max_model_len = "
                f"{config.max_model_len} tokens. Increase it, or reduce model.max_model_len"
            )
        return rows, KVCache(rows=rows, **shape, dtype=parameter.dtype, device=self._device)

    @property
    def weight_version(self) -> int:
        return self._version

    def exit_reason(self, error: Exception) -> str | None:
        """Return None: the engine runs in this process. For the interface of `VllmEngine`."""
        return None

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Add groups to the running ones. Raise ValueError for a prompt that does not fit."""
        for request in requests:
            tokens = len(request.prompt.token_ids)
            if tokens % self._streams or not 0 < tokens <= self._max_model_len - self._streams:
                raise ValueError(
                    f"prompt {request.prompt.id} has {tokens} tokens; allowed: multiples of {self._streams} up to "
                    f"{self._max_model_len - self._streams}"
                )
            self._waiting.extend((request, index) for index in range(request.group_size))

    def run_for(self, duration_s: float, worker: str) -> list[tuple[int, Reply]]:
        """Generate for a duration, or until no reply is running. Return finished replies with the number of their
        request."""
        end = perf_counter() + duration_s
        while (self._waiting or self._running) and perf_counter() < end:
            self._step()
        finished, self._finished = self._finished, []
        return [(running.request.number, self._reply(running, worker)) for running in finished]

    def abort_all(self) -> None:
        """Abort all requests."""
        for part in (self._waiting, self._running, self._finished):
            part.clear()

    def generate(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig, seeds: list[int], worker: str
    ) -> list[ReplyGroup]:
        """Generate a complete group for each prompt. The engine must have no other requests. seeds: one per prompt."""
        return generate_groups(self, prompts, group_size, sampling, seeds, worker)

    @torch.inference_mode()
    def _step(self) -> None:
        """Admit waiting replies, run one step of all running ones, and collect those that finish."""
        while self._waiting and len(self._running) < self._rows:
            self._admit(*self._waiting.popleft())
        replies = self._running
        positions, mask = self._cache.begin([reply.length for reply in replies])
        ids = torch.tensor([reply.pending for reply in replies], device=self._device)
        hidden = self._outputs(ids, position_ids=positions, attention_mask=mask, past_key_values=self._cache)
        for reply in replies:
            reply.length, reply.pending = reply.length + 1, []
            reply.versions = (reply.versions or (self._version, 0))[0], self._version
        temperatures = [reply.request.sampling.temperature for reply in replies]
        generators = [reply.generator for reply in replies]
        for stream, layer in enumerate(self._model.output_layers):
            states = [reply.state for reply in replies]
            sampled = self._sampler.sample(stream, layer, hidden[:, stream], states, temperatures, generators)
            for reply, token, logp in zip(replies, *sampled, strict=True):
                reply.state = self._sampler.after(reply.state, token)
                reply.pending.append(token)
                reply.logps.append(logp)
        self._collect_finished()

    def _outputs(self, ids: Tensor, **where: Any) -> Tensor:
        """Return the outputs [n, streams, width] of the last step."""
        found = self._model.model(input_ids=ids, use_cache=True, **where).last_hidden_state
        return found[:, -self._streams :]

    def _admit(self, request: RolloutRequest, index: int) -> None:
        """Give a reply a row that holds its prompt except the last step. That step runs next; its outputs give the
        first tokens."""
        ids, row = request.prompt.token_ids, len(self._running)
        steps = len(ids) // self._streams - 1
        siblings = (
            other
            for other, reply in enumerate(self._running)
            if reply.request is request and reply.prompt_version == self._version
        )
        if (sibling := next(siblings, None)) is not None:
            self._cache.copy(sibling, row, steps)
        elif steps:
            self._prefill(row, ids[: -self._streams])
        self._running.append(
            RunningReply(
                request=request,
                index=index,
                generator=np.random.default_rng(request.seed + index),
                max_steps=min(request.sampling.max_tokens, self._max_model_len - len(ids)) // self._streams,
                pending=ids[-self._streams :].tolist(),
                length=steps,
                prompt_version=self._version,
            )
        )

    def _prefill(self, row: int, ids: np.ndarray) -> None:
        """Compute the KV cache of a prompt [P]. Audio features of an encoder would be added to the model's embeddings
        here (`heard` of speech.modeling.kimi_audio)."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        self._outputs(torch.from_numpy(ids.astype(np.int64))[None].to(self._device), past_key_values=cache)
        for layer, held in enumerate(cache.layers):
            self._cache.put(row, layer, held.keys[0], held.values[0])

    def _collect_finished(self) -> None:
        """Append the step's tokens. Remove finished replies and move the last rows into the gaps."""
        for row in reversed(range(len(self._running))):
            reply = self._running[row]
            reply.tokens += reply.pending
            if self._vocabulary.end_reply in reply.pending:
                reply.finish = Finish.STOP
            elif len(reply.tokens) >= reply.max_steps * self._streams:
                reply.finish = Finish.LENGTH
            if reply.finish is not None:
                self._finished.append(reply)
                last = self._running.pop()
                if last is not reply:
                    self._cache.copy(len(self._running), row, last.length)
                    self._running[row] = last

    def _reply(self, running: RunningReply, worker: str) -> Reply:
        ids = np.asarray(running.tokens, dtype=np.int32)
        first, newest = running.versions or (self._version, self._version)
        return Reply(
            prompt_id=running.request.prompt.id,
            index=running.index,
            token_ids=ids,
            channels=self._channels[ids],
            logps=np.asarray(running.logps, dtype=np.float32),
            weight_version=first,
            newest_version=newest,
            finish=running.finish or Finish.ABORTED,
            defect=check_reply_grammar(ids, self._pattern, self._kinds),
            worker=worker,
            seed=running.request.seed,
        )

    @torch.no_grad()
    def load_weights(
        self, files: Iterable[Path], version: int, *, whole: bool = True, scale: float | None = None
    ) -> None:
        """Load the weights of a version from safetensors files, like `rollout.vllm_engine.VllmEngine.load_weights`."""
        files = iter(files)
        first = next(files)
        try:
            own = dict(self._model.named_parameters(remove_duplicate=False))
            missing, adapters = set(own), dict[str, Tensor]()
            for path in itertools.chain([first], files):
                with safe_open(path, framework="pt", device=str(self._device)) as weights:
                    for name in weights.keys():  # noqa: SIM118
                        if scale is not None:
                            adapters[name] = weights.get_tensor(name)
                            continue
                        own[name].copy_(weights.get_tensor(name))
                        missing.discard(name)
            if scale is not None:
                for name, weight in merge_lora(self._checkpoint, adapters, scale):
                    own[name].copy_(weight)
            elif whole and missing:
                raise KeyError(f"the update lacks {', '.join(sorted(missing)[:3])}")
        except Exception as error:  # any error leaves a partial update
            raise PartialWeightUpdate(f"weights {version} were loaded partially: {error!r}") from error
        self._version = version

    @torch.inference_mode()
    def probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Return the log-probability of each token except those of the first step, given the steps before it, under the
        full distribution.

        sequences: int32 [L] each. Returns float32 [L − streams] each.
        """
        return [self._score(torch.from_numpy(ids.astype(np.int64)).to(self._device)) for ids in sequences]

    def _score(self, ids: Tensor) -> np.ndarray:
        hidden = self._model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, : -self._streams]
        targets = ids[self._streams :]
        found = torch.empty(len(targets), dtype=torch.float32, device=self._device)
        for stream, layer in enumerate(self._model.output_layers):
            positions = torch.arange(stream, len(targets), self._streams, device=self._device)
            for part in positions.split(max(1, MAX_LOGITS // layer.out_features)):
                logps = torch.log_softmax(layer(hidden[part]).float(), dim=-1)
                found[part] = logps.gather(-1, targets[part][:, None])[:, 0]
        return found.cpu().numpy()
