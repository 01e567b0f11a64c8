"""Memory that each role of a run needs, from the shape of its model. Pure arithmetic; an upper estimate.

Weights, gradients and optimizer state are exact. They follow from the number of parameters and from DeepSpeed's buffers
at each ZeRO stage (`stage_1_and_2.py`, `stage3.py`). Activations are those of a full micro-batch, or of all rows at
their greatest length if that is less.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from common.errors import InputError
from configs.schema import Config
from learner.micro_batches import MAX_LAYOUT_RATIO, MAX_LOGITS
from learner.parameter_filter import frozen_names

MIB, GIB = 2**20, 2**30
PROCESS_BYTES = {
    "driver": 250 * MIB,
    "controller": 275 * MIB,
    "learner": 600 * MIB,
    "reward": 390 * MIB,
    "rollout": 1000 * MIB,
}
"""Memory of a process without a model, mostly libraries. Measured with the small model of the playground
(docs/reliability.md); for the rollout worker without its KV cache."""
FLOAT32 = 4
REDUCE_BUCKET = 500_000_000
"""Elements of DeepSpeed's buffer for reducing gradients (default of `reduce_bucket_size`)."""
SUB_GROUP = 1_000_000_000
"""Elements that the stage 3 optimizer updates at once (default of `sub_group_size`)."""
LOGIT_COPIES = 4
"""float32 arrays of the size of the logits that `learner.policy` holds at once: logits, log-probabilities, and two for
the entropy or the gradient."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's dimensions."""

    parameters: int
    trained: int
    vocabulary: int
    width: int
    layers: int
    key_values: int
    """Elements of a token's keys in one layer: heads × head width. The values have as many."""
    inner: int
    """Width of the feed-forward layer."""
    tied: bool
    """True if the output layer is the embedding."""
    adapters: int = 0
    """Elements of the LoRA adapters, not part of `parameters`. With adapters only they are `trained`."""
    adapter_width: int = 0
    """Elements of a token between the two matrices of all adapters."""

    @property
    def named(self) -> int:
        """Elements of the weights, counting tied weights under each name."""
        return self.parameters + (self.vocabulary * self.width if self.tied else 0)

    @property
    def sent(self) -> int:
        """Elements that a weight sync sends."""
        return self.adapters or self.named


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Memory of one actor of a role, in bytes by purpose."""

    role: str
    count: int
    """Number of actors."""
    memory: dict[str, float]
    """Main memory."""
    device: dict[str, float] = field(default_factory=dict)
    """Memory of each GPU that the actor uses; empty without a GPU."""
    gpus: float = 0.0
    """GPUs of each actor."""

    @property
    def host(self) -> float:
        return sum(self.memory.values())

    @property
    def on_gpu(self) -> float:
        return sum(self.device.values())


def read_model_shape(
    settings: Mapping[str, Any],
    tensors: Mapping[str, list[int]],
    frozen: list[str],
    rank: int = 0,
    adapted: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> ModelShape:
    """Return the shape of a checkpoint's model. Raises InputError if config.json lacks a dimension.

    Args:
        settings: The checkpoint's config.json.
        tensors: Shapes of its tensors by name.
        frozen: Patterns of parameters that are not trained.
        rank: Rank of the LoRA adapters; 0 without.
        adapted: Input and output width of each layer with an adapter.
    """
    heads, width = _positive_integer(settings, "num_attention_heads"), _positive_integer(settings, "hidden_size")
    head = _positive_integer(settings, "head_dim") if settings.get("head_dim") else width // heads
    counts = {name: _product(dimensions) for name, dimensions in tensors.items()}
    untrained = frozen_names(sorted({*counts, "lm_head.weight"}), frozen) if frozen else set()
    adapters = rank * sum(inputs + outputs for inputs, outputs in adapted.values())
    return ModelShape(
        parameters=sum(counts.values()),
        trained=adapters or sum(count for name, count in counts.items() if name not in untrained),
        vocabulary=_positive_integer(settings, "vocab_size"),
        width=width,
        # A model may have more layers than its configuration counts, such as a speech branch.
        layers=max(
            _positive_integer(settings, "num_hidden_layers"),
            sum(name.endswith(".input_layernorm.weight") for name in tensors),
        ),
        key_values=head
        * (_positive_integer(settings, "num_key_value_heads") if "num_key_value_heads" in settings else heads),
        inner=_positive_integer(settings, "intermediate_size"),
        tied=not any(name.endswith("lm_head.weight") for name in counts),
        adapters=adapters,
        adapter_width=rank * len(adapted),
    )


def needs(config: Config, model: ModelShape, *, reference: bool) -> list[MemoryNeed]:
    """Return the needs of every role. `reference`: True if the objective compares with the start model."""
    return [
        MemoryNeed(role="driver", count=1, memory={"process": PROCESS_BYTES["driver"]}),
        MemoryNeed(role="controller", count=1, memory={"process": PROCESS_BYTES["controller"]}),
        rollout_memory(config, model),
        MemoryNeed(
            role="reward", count=config.reward.num_servers, memory={"process, without raters": PROCESS_BYTES["reward"]}
        ),
        *_decoders(config),
        learner_memory(config, model, reference=reference),
    ]


def _decoders(config: Config) -> list[MemoryNeed]:
    """Return the needs of the decoders: at most those of a reward server, plus the unknown size of the codec."""
    d, parts = config.reward.decoders, {"process, without the codec": PROCESS_BYTES["reward"]}
    return [MemoryNeed(role="decoder", count=d.num_workers, memory=parts)] if d.num_workers else []


def cache_of_sequence(config: Config, model: ModelShape) -> float:
    """Return the bytes of the KV cache of one reply of the greatest length."""
    return 2.0 * model.layers * model.key_values * width_of(config) * config.model.max_model_len


def in_flight(config: Config) -> int:
    """Return the number of replies that one engine generates at once."""
    share = -(-config.rollout.batch_size // config.rollout.num_workers) * config.rollout.n
    return min(config.rollout.max_num_seqs, share)


def rollout_memory(config: Config, model: ModelShape) -> MemoryNeed:
    """Return the needs of a rollout worker.

    On a CPU the engine allocates its KV cache at the start. On a GPU the cache gets what
    `rollout.gpu_memory_utilization` leaves.
    """
    r, b = config.rollout, width_of(config)
    weights = model.parameters * b / r.tensor_parallel_size
    # The sampler uses float32 for the logits of all replies in flight.
    parts = {"weights": weights, "sampling": 2.0 * FLOAT32 * in_flight(config) * model.vocabulary}
    if r.num_gpus > 0:
        return MemoryNeed(
            role="rollout",
            count=r.num_workers,
            memory={"process": PROCESS_BYTES["rollout"], "weights during a sync": model.sent * b},
            device=parts,
            gpus=r.num_gpus,
        )
    cache = {"KV cache": max(1, round(r.cpu_kv_cache_gib)) * GIB}
    return MemoryNeed(role="rollout", count=r.num_workers, memory={"process": PROCESS_BYTES["rollout"]} | parts | cache)


def learner_memory(config: Config, model: ModelShape, *, reference: bool) -> MemoryNeed:
    """Return the needs of a learner rank at its ZeRO stage."""
    c, b = config.learner, width_of(config)
    stage, ranks, trained = c.zero_stage, c.num_workers, model.trained
    weights = (model.parameters + model.adapters) * b
    parts: dict[str, float] = {"weights": weights / ranks if stage == 3 else weights}
    if stage == 3:
        parts["weights gathered for saving"] = weights
    parts["gradients"] = trained * b / (ranks if stage >= 2 else 1)
    if stage == 0:
        parts["optimizer"] = 2.0 * trained * b
    else:
        # float32 moments and weights of this rank's partition, and the gradient of the step: of the whole partition, or
        # of one sub-group at stage 3.
        part = trained / ranks
        step = min(part, SUB_GROUP) if stage == 3 else part
        parts["optimizer"] = FLOAT32 * (3.0 * part + step)
        parts["gradient reduction"] = b * (REDUCE_BUCKET if c.num_gpus > 0 else min(REDUCE_BUCKET, trained))
    if reference and not model.adapters:  # with adapters the reference is the model without them
        parts["start model"] = weights
    parts |= activation_memory(config, model)
    base = {"process": PROCESS_BYTES["learner"]}
    saving: dict[str, float] = {"weights during saving": (model.named + model.adapters) * b}
    if c.num_gpus > 0:
        return MemoryNeed(role="learner", count=ranks, memory=base | saving, device=parts, gpus=c.num_gpus)
    return MemoryNeed(role="learner", count=ranks, memory=base | saving | parts)


def activation_memory(config: Config, model: ModelShape) -> dict[str, float]:
    """Return the memory of one micro-batch: activations for the backward pass, and logits."""
    c, b, length = config.learner, width_of(config), config.model.max_model_len
    share = -(-rows_of_step(config) // c.num_workers)
    most = share * length
    paired = config.algorithm.name == "dpo"
    tokens = min(most, max(c.max_tokens_per_micro_batch, 2 * length if paired else length))
    cells = min(most, MAX_LAYOUT_RATIO * tokens) if c.sequence_packing else tokens  # of attention, which pads rows
    # A norm keeps its input in float32, the normalised input and its output. A layer has two norms. It also keeps
    # queries, keys, values and the attention's output, and in the feed-forward layer gate, activated gate, up and their
    # product.
    norm = model.width * (FLOAT32 + 2 * b)
    layer = tokens * (2 * norm + b * 4 * model.inner) + cells * b * (2 * model.width + 2 * model.key_values)
    if c.sequence_packing:
        layer += tokens * b * model.width  # the attention's output, packed again
    # Kept of every layer: everything, or with checkpointing its input, plus everything of one layer at a time.
    kept = model.layers * tokens * b * model.width + layer if c.gradient_checkpointing else model.layers * layer
    # A packed micro-batch may consist of replies almost entirely.
    scored = tokens if c.sequence_packing else tokens * min(config.rollout.max_new_tokens, length) / length
    return {
        "activations": float(kept + tokens * (norm + b * model.adapter_width)),
        "logits": float(LOGIT_COPIES * FLOAT32 * min(scored * model.vocabulary, max(MAX_LOGITS, model.vocabulary))),
    }


def rows_of_step(config: Config) -> int:
    """Return the rows of a step over all ranks."""
    paired = config.algorithm.name == "dpo"
    return (2 * config.rollout.batch_size if paired else config.replies) + config.anchor.batch_size


def checkpoint(config: Config, model: ModelShape) -> float:
    """Return the bytes of a checkpoint: the model, and the optimizer state of all ranks."""
    b, c = width_of(config), config.learner
    weights = (model.parameters + model.adapters) * b
    if c.zero_stage == 0:  # each rank writes the whole state
        return weights + 2.0 * model.trained * b * c.num_workers
    return weights + 3.0 * FLOAT32 * model.trained


def width_of(config: Config) -> int:
    """Return the bytes of one element of the model."""
    return {"float32": 4, "bfloat16": 2}[config.model.dtype]


def _positive_integer(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    if type(value) is not int or value < 1:
        raise InputError(f"model.path: its config.json has {name} {value!r}; it must be a whole number above 0")
    return value


def _product(dimensions: list[int]) -> int:
    product = 1
    for dimension in dimensions:
        product *= dimension
    return product
