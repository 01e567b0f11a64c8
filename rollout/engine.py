"""One vLLM engine, as rollouts need it: sample groups, take weights, answer probes. No Ray here."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rollout.life import EngineLife
from speech.families import Family
from speech.interleave import check, kind_table
from speech.records import Finish, Group, Prompt, Reply
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
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
class SamplingSettings:
    """The distribution that replies are drawn from."""

    temperature: float
    max_tokens: int


class Engine:
    """A started vLLM engine.

    Weights pass through vLLM's life cycle: start, update, finish with the version. Until the first update the engine
    holds the checkpoint's weights under version 0.
    """

    def __init__(self, settings: EngineSettings, family: Family, vocabulary: Vocabulary, seed: int) -> None:
        _set_environment(settings)
        from vllm import LLM  # after the environment: vLLM reads it on import

        from rollout import receive
        from rollout.structure import CONFIG_KEY, StructureProcessor

        structure = {CONFIG_KEY: json.dumps({"family": family.name, "checkpoint": settings.checkpoint})}
        self._vocabulary = vocabulary
        self._pattern = family.interleave
        self._kinds = kind_table(vocabulary)
        self._channels = vocabulary.channel_table()
        self._version = 0
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
            # Log-probabilities of the very distribution that was sampled; the default is the raw one (method §7,
            # rule 3).
            logprobs_mode="processed_logprobs",
            logits_processors=[StructureProcessor] if settings.constrained else None,
            additional_config=structure if settings.constrained else {},
            weight_transfer_config={"backend": receive.BACKEND},
            worker_extension_cls="rollout.receive.WorkerExtension",
        )
        self.life = EngineLife(self._llm)
        self._llm.init_weight_transfer_engine({"init_info": {}})

    @property
    def weight_version(self) -> int:
        return self._version

    def sample(
        self, prompts: list[Prompt], group_size: int, sampling: SamplingSettings, seeds: list[int], worker: str
    ) -> list[Group]:
        """Samples `group_size` replies for each prompt. `seeds`, one a prompt, fix the draws of its group."""
        from vllm import SamplingParams

        parameters = [
            SamplingParams(
                n=group_size,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=seed,
                logprobs=0,  # the sampled token's own log-probability, nothing more
                stop_token_ids=[self._vocabulary.end_reply],
                detokenize=False,
            )
            for seed in seeds
        ]
        inputs = [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in prompts]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
        return [
            Group(
                prompt=prompt,
                replies=[
                    self._reply(prompt, index, completion, seed, worker)
                    for index, completion in enumerate(output.outputs)
                ],
            )
            for prompt, output, seed in zip(prompts, outputs, seeds, strict=True)
        ]

    def _reply(self, prompt: Prompt, index: int, completion, seed: int, worker: str) -> Reply:
        ids = np.asarray(completion.token_ids, dtype=np.int32)
        logps = np.asarray(
            [step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)],
            dtype=np.float32,
        )
        finish = Finish(completion.finish_reason) if completion.finish_reason in ("stop", "length") else Finish.ABORTED
        return Reply(
            prompt_id=prompt.id,
            index=index,
            token_ids=ids,
            channels=self._channels[ids],
            logps=logps,
            weight_version=self._version,
            finish=finish,
            defect=check(ids, self._pattern, self._kinds),
            worker=worker,
            seed=seed,
        )

    def load_weights(self, path: Path, version: int) -> None:
        """Takes the weights in a safetensors file as this version."""
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"path": str(path)}})
        self._llm.finish_weight_update(weight_version=str(version))
        self._llm.reset_prefix_cache()  # keys and values of the old weights
        self._version = version

    def probe(self, sequences: list[np.ndarray]) -> list[np.ndarray]:
        """Log-probability of each token but the first, given those before it, under the full distribution.

        sequences: int32 [L] each. Returns float32 [L − 1] each.
        """
        from vllm import SamplingParams

        parameters = SamplingParams(prompt_logprobs=0, max_tokens=1, temperature=0.0, detokenize=False)
        inputs = [{"prompt_token_ids": sequence.tolist()} for sequence in sequences]
        outputs = self._llm.generate(inputs, parameters, use_tqdm=False)
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


def _set_environment(settings: EngineSettings) -> None:
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
