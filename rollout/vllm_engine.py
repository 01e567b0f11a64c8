"""One vLLM engine, as rollouts need it: draw replies, take weights, answer probes. No Ray here.

The engine goes a step at a time, in `turn`, so that between turns it can be given more to draw, or other weights: the
replies that are under way are kept, and go on with those.
"""

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cluster.waiting import SyncInterrupted
from rollout.engine_liveness import EngineLiveness
from speech.audio import read_features
from speech.families import Family
from speech.grammar import check_reply_grammar, token_kinds
from speech.types import Finish, Prompt, Reply, ReplyGroup
from speech.vocabulary import Vocabulary
from weight_sync.receiver import BroadcastReceiver
from weight_sync.update import WeightUpdate


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What an engine is started with."""

    checkpoint: str
    """A Hugging Face checkpoint; its weights are replaced by the learner's before the first reply."""
    dtype: str
    max_length: int
    """Longest prompt plus reply, tokens."""
    max_sequences: int
    """Replies in flight at once."""
    constrained: bool
    """Whether sampling is held to the family's interleave structure."""
    in_process: bool
    """Runs vLLM's core in this process: a small machine starts it in a third of the time."""
    threads: int
    """CPU threads of the engine."""
    kv_cache_gib: float
    """CPU memory for keys and values."""
    gpu_memory_share: float
    """Share of the GPU's memory; ignored on CPU."""
    tensor_parallel: int
    trust_remote_code: bool = False
    """Whether code that comes with the checkpoint may be run."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """The distribution that replies are drawn from."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """A group to be drawn."""

    number: int
    """Whoever orders tells groups apart by it."""
    prompt: Prompt
    group_size: int
    sampling: SamplingConfig
    seed: int
    """Fixes the draws: that of a reply is this plus its index."""


class RolloutEngine(Protocol):
    """What draws replies."""

    def submit(self, orders: Sequence[RolloutRequest]) -> None: ...

    def turn(self, seconds: float, worker: str) -> list[tuple[int, Reply]]: ...


def generate_groups(
    engine: RolloutEngine,
    prompts: list[Prompt],
    group_size: int,
    sampling: SamplingConfig,
    seeds: list[int],
    worker: str,
) -> list[ReplyGroup]:
    """A group for each prompt, drawn to the end; nothing else may be under way. seeds: one a prompt."""
    engine.submit(
        [
            RolloutRequest(number=number, prompt=prompt, group_size=group_size, sampling=sampling, seed=seed)
            for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
    )
    replies: list[list[Reply]] = [[] for _ in prompts]
    for number, reply in engine.turn(float("inf"), worker):
        replies[number].append(reply)
    return [
        ReplyGroup(prompt=prompt, replies=sorted(drawn, key=lambda reply: reply.index))
        for prompt, drawn in zip(prompts, replies, strict=True)
    ]


class PartialWeightUpdate(RuntimeError):
    """Some parameters may be new and others old, or nowhere: the engine is of no more use."""


class VllmEngine:
    """A started vLLM engine.

    Weights pass through vLLM's life cycle: start, update, finish with the version. Until the first update the engine
    holds the checkpoint's weights under version 0.
    """

    def __init__(self, settings: EngineConfig, family: Family, vocabulary: Vocabulary, seed: int) -> None:
        _set_environment(settings)
        from vllm import LLM  # after the environment: vLLM reads it on import

        from rollout.constrained_decoding import CONFIG_KEY, StructureProcessor
        from weight_sync import vllm_receiver

        structure = {CONFIG_KEY: json.dumps({"family": family.name, "checkpoint": settings.checkpoint})}
        self._vocabulary = vocabulary
        self._pattern = family.interleave
        self._kinds = token_kinds(vocabulary)
        self._channels = vocabulary.channel_table()
        self._version = 0
        self._in_process, self._dtype = settings.in_process, settings.dtype
        self._drawing: dict[str, tuple[RolloutRequest, int]] = {}
        """Replies under way by vLLM's name for the request: their order, and their index in its group."""
        self._finished: list[tuple[RolloutRequest, int, Any]] = []
        self._probing: dict[str, Any] = {}
        self._names = itertools.count()
        self._llm = LLM(
            model=settings.checkpoint,
            skip_tokenizer_init=True,
            load_format="safetensors",  # and nothing that is unpickled
            trust_remote_code=settings.trust_remote_code,
            dtype=settings.dtype,
            seed=seed,
            max_model_len=settings.max_length,
            max_num_seqs=settings.max_sequences,
            block_size=_block_size(),
            tensor_parallel_size=settings.tensor_parallel,
            # In a placement group vLLM would start Ray actors for the others, and find no room for them in it.
            distributed_executor_backend="mp" if settings.tensor_parallel > 1 else None,
            gpu_memory_utilization=settings.gpu_memory_share,
            enforce_eager=True,
            # A seeded request whose prompt is cut in two rewinds its generator, which CPU generators cannot do.
            enable_chunked_prefill=False,
            disable_log_stats=False,  # counted for Prometheus; nothing is printed below the log level INFO
            # A group has one prompt, which is computed once.
            enable_prefix_caching=True,
            # Log-probabilities of the very distribution that was sampled; the default is the raw one (method §7,
            # rule 3).
            logprobs_mode="processed_logprobs",
            logits_processors=[StructureProcessor] if settings.constrained else None,
            additional_config=structure if settings.constrained else {},
            weight_transfer_config={"backend": vllm_receiver.BACKEND},
            enable_prompt_embeds=family.hears == "features",
            worker_extension_cls="weight_sync.vllm_receiver.WorkerExtension",
        )
        self.life = EngineLiveness(self._llm)
        self._broadcasts = BroadcastReceiver(self._llm)
        self._stands_still = False
        self._llm.init_weight_transfer_engine({"init_info": {}})
        self._llm.update_weight_version("0")

    @property
    def weight_version(self) -> int:
        return self._version

    def submit(self, orders: Sequence[RolloutRequest]) -> None:
        """Groups to be drawn, beside those that are under way."""
        for order in orders:
            for index in range(order.group_size):
                request = self._add(
                    order.prompt.token_ids,
                    order.prompt.features,
                    temperature=order.sampling.temperature,
                    max_tokens=order.sampling.max_tokens,
                    seed=order.seed + index,
                    logprobs=0,  # the sampled token's own log-probability, nothing more
                    stop_token_ids=[self._vocabulary.end_reply],
                )
                self._drawing[request] = order, index

    def _add(self, token_ids: np.ndarray, features: str | None = None, **parameters: Any) -> str:
        """A request for vLLM. Returns its name. Raises InputError for features that cannot be read."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        name = str(next(self._names))
        prompt = self._input(token_ids, features)
        kind = RequestOutputKind.FINAL_ONLY
        self._llm.llm_engine.add_request(name, prompt, SamplingParams(detokenize=False, output_kind=kind, **parameters))
        return name

    def _input(self, token_ids: np.ndarray, features: str | None) -> Any:
        """A prompt as vLLM takes it: ids and, in the slots among them, an encoder's frames."""
        from vllm.inputs import tokens_input

        # What the old weights computed of a prompt must not be taken for what the new ones would.
        salt = str(self._version)
        if features is None:
            return tokens_input(token_ids.tolist(), cache_salt=salt)
        import torch
        from vllm.inputs import embeds_input

        slots = torch.from_numpy(token_ids == self._vocabulary.slot)
        frames = torch.from_numpy(read_features(features, int(slots.sum())))
        embedded = torch.zeros(len(token_ids), frames.shape[1], dtype=getattr(torch, self._dtype))
        embedded[slots] = frames.to(embedded.dtype)
        return embeds_input(
            embedded, cache_salt=salt, prompt_token_ids=token_ids.tolist(), is_token_ids=(~slots).tolist()
        )

    def turn(self, seconds: float, worker: str) -> list[tuple[int, Reply]]:
        """Draws for so long, or until nothing is under way. Returns the replies that came to their end, each with the
        number of its order."""
        end = time.perf_counter() + seconds
        while self._drawing and time.perf_counter() < end:
            self._step()
        finished, self._finished = self._finished, []
        return [(order.number, self._reply(order, index, drawn, worker)) for order, index, drawn in finished]

    def abandon(self) -> None:
        """Gives up everything that is under way."""
        self._llm.llm_engine.abort_request(list(self._drawing), internal=False)
        self._drawing.clear()
        self._finished.clear()

    def sample(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig, seeds: list[int], worker: str
    ) -> list[ReplyGroup]:
        """Draws a group for each prompt, to the end; nothing else may be under way. seeds: one a prompt."""
        return generate_groups(self, prompts, group_size, sampling, seeds, worker)

    def ended(self, error: Exception) -> str | None:
        """How the engine ended, where that is what made a call fail."""
        from vllm.v1.engine.exceptions import EngineDeadError

        return self.life.end or (str(error) if isinstance(error, EngineDeadError) else None)

    def _step(self) -> None:
        """One step of everything that is under way."""
        for output in self._llm.llm_engine.step():
            if output.finished:
                if (drawn := self._drawing.pop(output.request_id, None)) is not None:
                    self._finished.append((*drawn, output.outputs[0]))
                elif output.request_id in self._probing:
                    self._probing[output.request_id] = output

    def _reply(self, order: RolloutRequest, index: int, drawn: Any, worker: str) -> Reply:
        ids = np.asarray(drawn.token_ids, dtype=np.int32)
        logps = np.asarray(
            [step[token].logprob for step, token in zip(drawn.logprobs, drawn.token_ids, strict=True)],
            dtype=np.float32,
        )
        versions = [int(span.version) for span in drawn.weight_versions or ()]
        finish = Finish(drawn.finish_reason) if drawn.finish_reason in ("stop", "length") else Finish.ABORTED
        return Reply(
            prompt_id=order.prompt.id,
            index=index,
            token_ids=ids,
            channels=self._channels[ids],
            logps=logps,
            weight_version=min(versions, default=self._version),
            newest_version=max(versions, default=self._version),
            finish=finish,
            defect=check_reply_grammar(ids, self._pattern, self._kinds),
            worker=worker,
            seed=order.seed,
        )

    def load_weights(
        self, files: Iterable[Path], version: int, *, whole: bool = True, scale: float | None = None
    ) -> None:
        """Takes the weights in safetensors files as this version; each file is read before the next is asked for. What
        is under way goes on with them, and with the keys and values that the old ones computed. whole: whether all
        parameters are in them; those that are not stay as they are. scale: of adapters, if they are those (see
        `weight_sync.update.WeightUpdate`). Raises HalfTaken when something failed after the first file; before it,
        nothing has happened to the engine."""
        files = iter(files)
        first = next(files)
        with self._still():
            try:
                self._llm.start_weight_update()
                for path in itertools.chain([first], files):
                    self._llm.update_weights({"update_info": {"path": str(path), "whole": whole, "scale": scale}})
                self._llm.finish_weight_update(weight_version=str(version))
            except Exception as error:  # of vLLM, of Ray, of the file system: whatever it is, half is in
                raise PartialWeightUpdate(f"weights {version} were not taken to the end: {error!r}") from error
        self._version = version

    def take_broadcast(self, parcel: WeightUpdate, worker: str) -> None:
        """Takes the weights that the learner broadcasts, while it does. What is under way goes on as after
        `load_weights`. worker: whose engine it is. Raises Interrupted when not all came: called with the same parcel it
        goes on where it was, and until then nothing may be drawn. Raises HalfTaken for what cannot go on."""
        with self._still():
            try:
                self._broadcasts.receive(parcel, worker)
            except SyncInterrupted:
                raise
            except Exception as error:  # as in `load_weights`
                raise PartialWeightUpdate(f"weights {parcel.version} were not taken to the end: {error!r}") from error
        self._version = parcel.version

    @contextmanager
    def _still(self) -> Iterator[None]:
        """An engine process of its own draws by itself; weights change while it does not."""
        core = self._llm.llm_engine.engine_core
        if not self._in_process and self._drawing and not self._stands_still:
            core.call_utility("pause_scheduler", "keep", False)
            self._stands_still = True
        try:
            yield
        finally:
            if self._stands_still and not self._broadcasts.is_partial:
                core.call_utility("resume_scheduler")
                self._stands_still = False

    def probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Log-probability of each token but the first, given those before it, under the full distribution.

        sequences: int32 [L] each. Returns float32 [L − 1] each.
        """
        requests = [self._add(ids, prompt_logprobs=0, max_tokens=1, temperature=0.0) for ids in sequences]
        self._probing = dict.fromkeys(requests)
        while None in self._probing.values():
            self._step()
        outputs = [self._probing.pop(request) for request in requests]
        return [
            np.asarray(
                [
                    step[int(token)].logprob
                    for step, token in zip(output.prompt_logprobs[1:], sequence[1:], strict=True)
                ],
                dtype=np.float32,
            )
            for output, sequence in zip(outputs, sequences, strict=True)
        ]


def _block_size() -> int | None:
    """Tokens of a block of keys and values, the unit in which a group shares those of its prompt.

    On a CPU vLLM takes 128 by itself, longer than many a prompt, of which then nothing is shared; 32 is the least that
    its kernels know. On a GPU its own choice is 16.
    """
    import torch

    return None if torch.cuda.is_available() else 32


def process_environment(settings: EngineConfig) -> dict[str, str]:
    """What the process of an engine must be started with: set later, it is too late for torch and the C library."""
    return {
        "OMP_NUM_THREADS": str(settings.threads),
        # New weights pass through new memory, most of it packed anew for the kernels. In huge pages that takes two
        # thirds of the time; the first is for what the C library gives out, the second for torch's tensors.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "THP_MEM_ALLOC_ENABLE": "1",
    }


def _set_environment(settings: EngineConfig) -> None:
    """Settings that vLLM reads from the environment only."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if settings.in_process else "1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(settings.kv_cache_gib)))
    # Unset, every engine binds itself to the same cores and starves the others.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    if settings.constrained:
        # Model runner V2 refuses logits processors of the V1 interface.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
