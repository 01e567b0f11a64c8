"""A vLLM engine for rollouts: generates replies, takes weights, computes log-probabilities. Without Ray.

The engine runs for a limited time per call of `run_for`. Between calls it takes further requests and new weights;
running replies continue with those.
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
    """Settings of an engine."""

    checkpoint: str
    """A Hugging Face checkpoint; its weights are replaced by the learner's before the first reply."""
    dtype: str
    max_model_len: int
    """Longest prompt plus reply, tokens."""
    max_num_seqs: int
    """Replies in flight at once."""
    constrained: bool
    """Restrict sampling to the family's interleave grammar."""
    in_process: bool
    """Run vLLM's core in this process: on a small machine it starts in a third of the time."""
    num_threads: int
    """CPU threads of the engine."""
    cpu_kv_cache_gib: float
    """CPU memory of the KV cache."""
    gpu_memory_utilization: float
    """Share of the GPU's memory; ignored on CPU."""
    tensor_parallel_size: int
    trust_remote_code: bool = False
    """Allow to run code that comes with the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling parameters."""

    temperature: float
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """Request for a group of replies to one prompt."""

    number: int
    """Identifies the group to the caller."""
    prompt: Prompt
    group_size: int
    sampling: SamplingConfig
    seed: int
    """Base seed; the seed of a reply is this plus its index."""


class RolloutEngine(Protocol):
    """Interface of the engines."""

    def submit(self, requests: Sequence[RolloutRequest]) -> None: ...

    def run_for(self, duration_s: float, worker: str) -> list[tuple[int, Reply]]: ...


def generate_groups(
    engine: RolloutEngine,
    prompts: list[Prompt],
    group_size: int,
    sampling: SamplingConfig,
    seeds: list[int],
    worker: str,
) -> list[ReplyGroup]:
    """Generate a complete group for each prompt. The engine must have no other requests. seeds: one per prompt."""
    engine.submit(
        [
            RolloutRequest(number=number, prompt=prompt, group_size=group_size, sampling=sampling, seed=seed)
            for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
    )
    replies: list[list[Reply]] = [[] for _ in prompts]
    for number, reply in engine.run_for(float("inf"), worker):
        replies[number].append(reply)
    return [
        ReplyGroup(prompt=prompt, replies=sorted(group, key=lambda reply: reply.index))
        for prompt, group in zip(prompts, replies, strict=True)
    ]


class PartialWeightUpdate(RuntimeError):
    """The engine holds a mix of new and old parameters. It must be restarted."""


class VllmEngine:
    """A started vLLM engine.

    Weight updates use vLLM's life cycle: start, update, finish with the version. Until the first update the engine
    holds the checkpoint's weights as version 0.
    """

    def __init__(self, config: EngineConfig, family: Family, vocabulary: Vocabulary, seed: int) -> None:
        _set_environment(config)
        from vllm import LLM  # vLLM reads the environment on import

        from rollout.constrained_decoding import CONFIG_KEY, StructureProcessor
        from weight_sync import vllm_receiver

        structure = {CONFIG_KEY: json.dumps({"family": family.name, "checkpoint": config.checkpoint})}
        self._vocabulary = vocabulary
        self._pattern = family.interleave
        self._kinds = token_kinds(vocabulary)
        self._channels = vocabulary.channel_table()
        self._version = 0
        self._in_process, self._dtype = config.in_process, config.dtype
        self._running: dict[str, tuple[RolloutRequest, int]] = {}
        """Running replies by vLLM's request id: their request, and their index in its group."""
        self._finished: list[tuple[RolloutRequest, int, Any]] = []
        self._probing: dict[str, Any] = {}
        self._request_ids = itertools.count()
        self._llm = LLM(
            model=config.checkpoint,
            skip_tokenizer_init=True,
            load_format="safetensors",  # never unpickle
            trust_remote_code=config.trust_remote_code,
            dtype=config.dtype,
            seed=seed,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            block_size=_block_size(),
            tensor_parallel_size=config.tensor_parallel_size,
            # In a placement group vLLM would start Ray actors for the other ranks, which do not fit into it.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=True,
            # Chunked prefill rewinds the generator of a seeded request, which CPU generators do not support.
            enable_chunked_prefill=False,
            disable_log_stats=False,  # for Prometheus; printed at the log level INFO only
            # The prompt of a group is computed once.
            enable_prefix_caching=True,
            # Log-probabilities of the sampled distribution; vLLM's default is the raw one (method §7, rule 3).
            logprobs_mode="processed_logprobs",
            logits_processors=[StructureProcessor] if config.constrained else None,
            additional_config=structure if config.constrained else {},
            weight_transfer_config={"backend": vllm_receiver.BACKEND},
            enable_prompt_embeds=family.hears == "features",
            worker_extension_cls="weight_sync.vllm_receiver.WorkerExtension",
        )
        self.liveness = EngineLiveness(self._llm)
        self._broadcasts = BroadcastReceiver(self._llm)
        self._paused = False
        self._llm.init_weight_transfer_engine({"init_info": {}})
        self._llm.update_weight_version("0")

    @property
    def weight_version(self) -> int:
        return self._version

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Add groups to the running ones."""
        for request in requests:
            for index in range(request.group_size):
                request_id = self._add(
                    request.prompt.token_ids,
                    request.prompt.features,
                    temperature=request.sampling.temperature,
                    max_tokens=request.sampling.max_tokens,
                    seed=request.seed + index,
                    logprobs=0,  # the sampled token alone
                    stop_token_ids=[self._vocabulary.end_reply],
                )
                self._running[request_id] = request, index

    def _add(self, token_ids: np.ndarray, features: str | None = None, **parameters: Any) -> str:
        """Add a vLLM request. Return its id. Raise InputError for unreadable features."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        request_id = str(next(self._request_ids))
        prompt = self._input(token_ids, features)
        kind = RequestOutputKind.FINAL_ONLY
        sampling = SamplingParams(detokenize=False, output_kind=kind, **parameters)
        self._llm.llm_engine.add_request(request_id, prompt, sampling)
        return request_id

    def _input(self, token_ids: np.ndarray, features: str | None) -> Any:
        """Return a prompt in vLLM's form: ids, with an encoder's frames in their slots."""
        from vllm.inputs import tokens_input

        # Prefix-cache entries of older weights must not be used.
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

    def run_for(self, duration_s: float, worker: str) -> list[tuple[int, Reply]]:
        """Generate for a duration, or until no reply is running. Return finished replies with the number of their
        request."""
        end = time.perf_counter() + duration_s
        while self._running and time.perf_counter() < end:
            self._step()
        finished, self._finished = self._finished, []
        return [(request.number, self._reply(request, index, output, worker)) for request, index, output in finished]

    def abort_all(self) -> None:
        """Abort all requests."""
        self._llm.llm_engine.abort_request(list(self._running), internal=False)
        self._running.clear()
        self._finished.clear()

    def generate(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingConfig, seeds: list[int], worker: str
    ) -> list[ReplyGroup]:
        """Generate a complete group for each prompt. The engine must have no other requests. seeds: one per prompt."""
        return generate_groups(self, prompts, group_size, sampling, seeds, worker)

    def exit_reason(self, error: Exception) -> str | None:
        """Return how the engine process exited, if that made a call fail."""
        from vllm.v1.engine.exceptions import EngineDeadError

        return self.liveness.exit_reason or (str(error) if isinstance(error, EngineDeadError) else None)

    def _step(self) -> None:
        """Run one engine step."""
        for output in self._llm.llm_engine.step():
            if output.finished:
                if (running := self._running.pop(output.request_id, None)) is not None:
                    self._finished.append((*running, output.outputs[0]))
                elif output.request_id in self._probing:
                    self._probing[output.request_id] = output

    def _reply(self, request: RolloutRequest, index: int, output: Any, worker: str) -> Reply:
        ids = np.asarray(output.token_ids, dtype=np.int32)
        logps = np.asarray(
            [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)],
            dtype=np.float32,
        )
        versions = [int(span.version) for span in output.weight_versions or ()]
        finish = Finish(output.finish_reason) if output.finish_reason in ("stop", "length") else Finish.ABORTED
        return Reply(
            prompt_id=request.prompt.id,
            index=index,
            token_ids=ids,
            channels=self._channels[ids],
            logps=logps,
            weight_version=min(versions, default=self._version),
            newest_version=max(versions, default=self._version),
            finish=finish,
            defect=check_reply_grammar(ids, self._pattern, self._kinds),
            worker=worker,
            seed=request.seed,
        )

    def load_weights(
        self, files: Iterable[Path], version: int, *, whole: bool = True, scale: float | None = None
    ) -> None:
        """Load the weights of a version from safetensors files, one file at a time. Running replies continue with them,
        and with the KV cache of the old weights.

        Args:
            whole: All parameters are included. Parameters left out keep their values.
            scale: Scale of adapters, if the files hold adapters (see `weight_sync.update.WeightUpdate`).

        Raises:
            PartialWeightUpdate: Failure after the first file. Errors before leave the engine unchanged.
        """
        files = iter(files)
        first = next(files)
        with self._generation_paused():
            try:
                self._llm.start_weight_update()
                for path in itertools.chain([first], files):
                    self._llm.update_weights({"update_info": {"path": str(path), "whole": whole, "scale": scale}})
                self._llm.finish_weight_update(weight_version=str(version))
            except Exception as error:  # any error, of vLLM, Ray or the file system, leaves a partial update
                raise PartialWeightUpdate(f"weights {version} were loaded partially: {error!r}") from error
        self._version = version

    def take_broadcast(self, parcel: WeightUpdate, worker: str) -> None:
        """Receive weights during the learner's broadcast. Running replies continue as after `load_weights`.

        worker: name of the engine's worker.

        Raises:
            SyncInterrupted: Some groups did not arrive. A call with the same update continues; generate nothing until
                then.
            PartialWeightUpdate: The update cannot continue.
        """
        with self._generation_paused():
            try:
                self._broadcasts.receive(parcel, worker)
            except SyncInterrupted:
                raise
            except Exception as error:  # as in `load_weights`
                raise PartialWeightUpdate(f"weights {parcel.version} were loaded partially: {error!r}") from error
        self._version = parcel.version

    @contextmanager
    def _generation_paused(self) -> Iterator[None]:
        """Pause an engine that generates in its own process, while weights change."""
        core = self._llm.llm_engine.engine_core
        if not self._in_process and self._running and not self._paused:
            core.call_utility("pause_scheduler", "keep", False)
            self._paused = True
        try:
            yield
        finally:
            if self._paused and not self._broadcasts.is_partial:
                core.call_utility("resume_scheduler")
                self._paused = False

    def probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Return the log-probability of each token except the first, given the tokens before it, under the full
        distribution.

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
    """Return the KV cache's block size, the unit in which a group shares its prompt.

    vLLM's default is 128 on a CPU, longer than many prompts, which then share nothing; its kernels support 32 and
    above. On a GPU the default is 16.
    """
    import torch

    return None if torch.cuda.is_available() else 32


def process_environment(config: EngineConfig) -> dict[str, str]:
    """Return the environment of an engine's process. torch and the C library read it at their start."""
    return {
        "OMP_NUM_THREADS": str(config.num_threads),
        # Weight updates allocate new memory, most of it repacked for the kernels. Huge pages take two thirds of the
        # time. The first variable is for the C library, the second for torch's tensors.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "THP_MEM_ALLOC_ENABLE": "1",
    }


def _set_environment(config: EngineConfig) -> None:
    """Set what vLLM reads from the environment alone."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if config.in_process else "1"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(config.cpu_kv_cache_gib)))
    # If unset, all engines bind to the same cores and starve each other.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(config.num_threads)
    if config.constrained:
        # Model runner V2 rejects logits processors of the V1 interface.
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
