"""An engine for models with several streams, which vLLM serves one of: the learner's own model class, drawing all.

Replies that are under way are drawn together, a step at a time, as many as there is room for; when one ends, the next
takes its place. The prompt of a group is computed once, for the first of its replies that is drawn under the same
weights. Interface and behaviour are those of `rollout.vllm_engine.VllmEngine`. No Ray and no vLLM here.

Keys and values of the replies that are under way: a row for each, the rows in use in front.
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
    """What layers of a transformers model take for a cache, in memory that is taken once. Whoever uses the rows knows
    which is whose; a step is everything that the model takes at once."""

    def __init__(
        self, *, layers: int, rows: int, heads: int, steps: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """heads, width: of the keys of a layer."""
        self._rows = torch.arange(rows, device=device)
        self._both = [torch.zeros(2, rows, heads, steps, width, dtype=dtype, device=device) for _ in range(layers)]
        """By layer: keys, values."""
        self._lengths = torch.zeros(0, dtype=torch.int64, device=device)
        self._longest = 0

    @staticmethod
    def row_bytes(*, layers: int, heads: int, steps: int, width: int, dtype: torch.dtype) -> int:
        return 2 * layers * heads * steps * width * dtype.itemsize

    def begin(self, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """The first rows each take a step more, behind so many. Returns positions int64 [n, 1], and which keys the step
        sees, bool [n, 1, 1, longest]."""
        self._lengths = torch.tensor(lengths, device=self._rows.device)
        self._longest = max(lengths) + 1
        seen = torch.arange(self._longest, device=self._rows.device) <= self._lengths[:, None]
        return self._lengths[:, None], seen[:, None, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keeps a step's [n, heads, 1, width]; returns all [n, heads, longest, width]. transformers' layers call it."""
        rows = self._rows[: len(self._lengths)]
        both = self._both[layer]
        both[0, rows, :, self._lengths] = keys[:, :, 0]
        both[1, rows, :, self._lengths] = values[:, :, 0]
        return both[0, : len(rows), :, : self._longest], both[1, : len(rows), :, : self._longest]

    def put(self, row: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """The first steps of a row: [heads, steps, width]."""
        self._both[layer][0, row, :, : keys.shape[1]] = keys
        self._both[layer][1, row, :, : keys.shape[1]] = values

    def copy(self, row: int, target: int, steps: int) -> None:
        """So many steps of a row to another."""
        for both in self._both:
            both[:, target, :, :steps] = both[:, row, :, :steps]


LOGITS = 2**25
"""Logits that a probe holds at once."""


@dataclass(kw_only=True, eq=False)
class RunningReply:
    """A reply under way."""

    order: RolloutRequest
    index: int
    generator: np.random.Generator
    most: int
    """Steps at most."""
    pending: list[int]
    """Ids of the step that the model takes next."""
    length: int
    """Steps that it has taken."""
    began: int
    """Weight version that computed its prompt."""
    state: int = 0
    """Of the structure."""
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    versions: tuple[int, int] | None = None
    """Weight versions of its first and of its last token."""
    finish: Finish | None = None


class MultiStreamEngine:
    """A loaded model. Until the first update it holds the checkpoint's weights under version 0."""

    def __init__(self, settings: EngineConfig, family: Family, vocabulary: Vocabulary) -> None:
        if settings.tensor_parallel > 1:
            raise InputError(
                f"rollout.tensor_parallel_size: {settings.tensor_parallel}, but the engine of family {family.name} "
                "keeps "
                "its model on one device; set it to 1"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        self._streams, self._vocabulary, self._pattern = family.streams, vocabulary, family.interleave
        self._kinds, self._channels = token_kinds(vocabulary), vocabulary.channel_table()
        self._max_length = settings.max_length
        dtype = getattr(torch, settings.dtype)
        model = load_pretrained(settings.checkpoint, family, dtype=dtype, trust_remote_code=settings.trust_remote_code)
        self._checkpoint = Path(settings.checkpoint)
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._chooser = MultiStreamSampler(
            family.interleave, self._kinds, family.streams, constrained=settings.constrained, device=self._device
        )
        self._rows, self._slots = self._room(settings)
        self._version = 0
        self._waiting: deque[tuple[RolloutRequest, int]] = deque()
        self._running: list[RunningReply] = []
        """By row of the slots."""
        self._finished: list[RunningReply] = []

    def _room(self, settings: EngineConfig) -> tuple[int, KVCache]:
        """Rows for replies at once, and their keys and values. Raises InputError where there is no room for one."""
        config, parameter = self._model.config, next(self._model.parameters())
        shape = {
            "layers": sum(1 for module in self._model.modules() if hasattr(module, "layer_idx")),
            "heads": config.num_key_value_heads,
            "steps": settings.max_length // self._streams,
            "width": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        }
        key, room = "rollout.cpu_kv_cache_gib", settings.kv_cache_gib * 2**30
        if self._device.type == "cuda":
            # Drawing takes a few arrays as large as the logits of all replies, which no row may take the room of.
            whole, used = torch.cuda.mem_get_info(self._device)[1], torch.cuda.memory_allocated(self._device)
            logits = 4.0 * 4 * settings.max_sequences * config.vocab_size
            key, room = "rollout.gpu_memory_utilization", whole * settings.gpu_memory_share - used - logits
        rows = min(settings.max_sequences, int(room // KVCache.row_bytes(**shape, dtype=parameter.dtype)))
        if rows < 1:
            raise InputError(
                f"{key}: no room for the keys and values of a reply of model.max_model_len = {settings.max_length} "
                "tokens"
            )
        return rows, KVCache(rows=rows, **shape, dtype=parameter.dtype, device=self._device)

    @property
    def weight_version(self) -> int:
        return self._version

    def ended(self, error: Exception) -> str | None:
        """As of an engine in a process of its own, which this one has not."""
        return None

    def submit(self, orders: Sequence[RolloutRequest]) -> None:
        """Groups to be drawn, beside those that are under way. Raises ValueError for one that does not fit."""
        for order in orders:
            tokens = len(order.prompt.token_ids)
            if tokens % self._streams or not 0 < tokens <= self._max_length - self._streams:
                raise ValueError(
                    f"prompt {order.prompt.id} has {tokens} tokens; {self._streams} for each step, and at most "
                    f"{self._max_length - self._streams}, are possible"
                )
            self._waiting.extend((order, index) for index in range(order.group_size))

    def turn(self, seconds: float, worker: str) -> list[tuple[int, Reply]]:
        """Draws for so long, or until nothing is under way. Returns the replies that came to their end, each with the
        number of its order."""
        end = perf_counter() + seconds
        while (self._waiting or self._running) and perf_counter() < end:
            self._step()
        finished, self._finished = self._finished, []
        return [(drawn.order.number, self._reply(drawn, worker)) for drawn in finished]

    def abandon(self) -> None:
        """Gives up everything that is under way."""
        for part in (self._waiting, self._running, self._finished):
            part.clear()

    def sample(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig, seeds: list[int], worker: str
    ) -> list[ReplyGroup]:
        """Draws a group for each prompt, to the end; nothing else may be under way. seeds: one a prompt."""
        return generate_groups(self, prompts, group_size, sampling, seeds, worker)

    @torch.inference_mode()
    def _step(self) -> None:
        """One step of everything that is under way, and of what there is room for."""
        while self._waiting and len(self._running) < self._rows:
            self._admit(*self._waiting.popleft())
        running = self._running
        positions, seen = self._slots.begin([drawn.length for drawn in running])
        ids = torch.tensor([drawn.pending for drawn in running], device=self._device)
        hidden = self._outputs(ids, position_ids=positions, attention_mask=seen, past_key_values=self._slots)
        for drawn in running:
            drawn.length, drawn.pending = drawn.length + 1, []
            drawn.versions = (drawn.versions or (self._version, 0))[0], self._version
        temperatures = [drawn.order.sampling.temperature for drawn in running]
        generators = [drawn.generator for drawn in running]
        for stream, layer in enumerate(self._model.output_layers):
            states = [drawn.state for drawn in running]
            found = self._chooser.draw(stream, layer, hidden[:, stream], states, temperatures, generators)
            for drawn, token, logp in zip(running, *found, strict=True):
                drawn.state = self._chooser.after(drawn.state, token)
                drawn.pending.append(token)
                drawn.logps.append(logp)
        self._settle()

    def _outputs(self, ids: Tensor, **where: Any) -> Tensor:
        """[n, streams, width] of the last step."""
        found = self._model.model(input_ids=ids, use_cache=True, **where).last_hidden_state
        return found[:, -self._streams :]

    def _admit(self, order: RolloutRequest, index: int) -> None:
        """Gives a reply a row, with the keys and values of its prompt but for the last step, which is still to be
        taken: its outputs are what the first tokens are drawn from."""
        ids, row = order.prompt.token_ids, len(self._running)
        steps = len(ids) // self._streams - 1
        like = (
            other for other, drawn in enumerate(self._running) if drawn.order is order and drawn.began == self._version
        )
        if (sibling := next(like, None)) is not None:
            self._slots.copy(sibling, row, steps)
        elif steps:
            self._prefill(row, ids[: -self._streams])
        self._running.append(
            RunningReply(
                order=order,
                index=index,
                generator=np.random.default_rng(order.seed + index),
                most=min(order.sampling.max_tokens, self._max_length - len(ids)) // self._streams,
                pending=ids[-self._streams :].tolist(),
                length=steps,
                began=self._version,
            )
        )

    def _prefill(self, row: int, ids: np.ndarray) -> None:
        """Keys and values of a prompt [P]. What an encoder made of a speaker's sound would be added to the model's
        embeddings here (`heard` of speech.modeling.kimi_audio)."""
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        self._outputs(torch.from_numpy(ids.astype(np.int64))[None].to(self._device), past_key_values=cache)
        for layer, held in enumerate(cache.layers):
            self._slots.put(row, layer, held.keys[0], held.values[0])

    def _settle(self) -> None:
        """Keeps the step's tokens; takes replies that have ended out of their rows, the last rows into the gaps."""
        for row in reversed(range(len(self._running))):
            drawn = self._running[row]
            drawn.tokens += drawn.pending
            if self._vocabulary.end_reply in drawn.pending:
                drawn.finish = Finish.STOP
            elif len(drawn.tokens) >= drawn.most * self._streams:
                drawn.finish = Finish.LENGTH
            if drawn.finish is not None:
                self._finished.append(drawn)
                last = self._running.pop()
                if last is not drawn:
                    self._slots.copy(len(self._running), row, last.length)
                    self._running[row] = last

    def _reply(self, drawn: RunningReply, worker: str) -> Reply:
        ids = np.asarray(drawn.tokens, dtype=np.int32)
        first, newest = drawn.versions or (self._version, self._version)
        return Reply(
            prompt_id=drawn.order.prompt.id,
            index=drawn.index,
            token_ids=ids,
            channels=self._channels[ids],
            logps=np.asarray(drawn.logps, dtype=np.float32),
            weight_version=first,
            newest_version=newest,
            finish=drawn.finish or Finish.ABORTED,
            defect=check_reply_grammar(ids, self._pattern, self._kinds),
            worker=worker,
            seed=drawn.order.seed,
        )

    @torch.no_grad()
    def load_weights(
        self, files: Iterable[Path], version: int, *, whole: bool = True, scale: float | None = None
    ) -> None:
        """As `rollout.vllm_engine.VllmEngine.load_weights`: takes the weights in safetensors files as this version."""
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
                raise KeyError(f"nothing came for {', '.join(sorted(missing)[:3])}")
        except Exception as error:  # of a file, of the file system, of a name: whatever it is, half is in
            raise PartialWeightUpdate(f"weights {version} were not taken to the end: {error!r}") from error
        self._version = version

    @torch.inference_mode()
    def probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Log-probability of each token but those of the first step, given the steps before, under the full
        distribution.

        sequences: int32 [L] each. Returns float32 [L − streams] each.
        """
        return [self._score(torch.from_numpy(ids.astype(np.int64)).to(self._device)) for ids in sequences]

    def _score(self, ids: Tensor) -> np.ndarray:
        hidden = self._model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0, : -self._streams]
        targets = ids[self._streams :]
        found = torch.empty(len(targets), dtype=torch.float32, device=self._device)
        for stream, layer in enumerate(self._model.output_layers):
            places = torch.arange(stream, len(targets), self._streams, device=self._device)
            for part in places.split(max(1, LOGITS // layer.out_features)):
                logps = torch.log_softmax(layer(hidden[part]).float(), dim=-1)
                found[part] = logps.gather(-1, targets[part][:, None])[:, 0]
        return found.cpu().numpy()
