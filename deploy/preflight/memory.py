"""How much memory each role of a run needs, from the shape of its model. Pure arithmetic; an estimate from above.

Weights, gradients and optimiser are exact: they follow from the number of parameters and from what DeepSpeed keeps at
each ZeRO stage (its `stage_1_and_2.py` and `stage3.py`). Activations are those of a full micro-batch, or of all rows at
their longest where that is less.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from common.errors import InputError
from configs.schema import Config
from learner.micro_batches import LAID_OUT, LOGITS
from learner.parameter_filter import frozen_names

MIB, GIB = 2**20, 2**30
HOLDS = {"driver": 250 * MIB, "controller": 275 * MIB, "learner": 600 * MIB, "reward": 390 * MIB, "rollout": 1000 * MIB}
"""What a process holds before it holds a model: libraries, mostly. As measured of the playground, whose model is small
(docs/reliability.md); of the rollout worker without its keys and values."""
FLOAT32 = 4
BUCKET = 500_000_000
"""Elements of the buffer in which DeepSpeed reduces gradients (`reduce_bucket_size`, its default)."""
SUB_GROUP = 1_000_000_000
"""Elements that the optimiser of stage 3 moves at once (`sub_group_size`, its default)."""
LOGIT_COPIES = 4
"""float32 arrays as large as the logits that scoring holds at once (`learner_memory.policy`): logits,
log-probabilities, and two while the entropy is reckoned, or the gradient."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's dimensions."""

    parameters: int
    trained: int
    vocabulary: int
    width: int
    layers: int
    key_values: int
    """Elements of a token's keys in one layer: heads × their width; its values are as many."""
    inner: int
    """Width of the feed-forward part."""
    tied: bool
    """The output layer is the embedding."""
    adapters: int = 0
    """Elements of low-rank adapters, beside `parameters`; where there are some, they alone are `trained`."""
    narrow: int = 0
    """Elements of a token between the two matrices of all adapters."""

    @property
    def named(self) -> int:
        """Elements of the weights, tied ones under each of their names."""
        return self.parameters + (self.vocabulary * self.width if self.tied else 0)

    @property
    def sent(self) -> int:
        """Elements that a sync passes on."""
        return self.adapters or self.named


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """What one member of a role needs, bytes by what they are for."""

    role: str
    members: int
    memory: dict[str, float]
    """Of the machine."""
    device: dict[str, float] = field(default_factory=dict)
    """Of each GPU that it uses; empty for a member without."""
    gpus: float = 0.0
    """GPUs of each member."""

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
    """From a checkpoint's config.json, the shapes of its tensors by name, patterns of what is not trained, and inputs
    and outputs of the layers that get an adapter of this rank.

    Raises InputError for a dimension that the configuration does not say.
    """
    heads, width = _whole(settings, "num_attention_heads"), _whole(settings, "hidden_size")
    head = _whole(settings, "head_dim") if settings.get("head_dim") else width // heads
    counts = {name: _product(dimensions) for name, dimensions in tensors.items()}
    still = frozen_names(sorted({*counts, "lm_head.weight"}), frozen) if frozen else set()
    adapters = rank * sum(inputs + outputs for inputs, outputs in adapted.values())
    return ModelShape(
        parameters=sum(counts.values()),
        trained=adapters or sum(count for name, count in counts.items() if name not in still),
        vocabulary=_whole(settings, "vocab_size"),
        width=width,
        # A model may have layers beside those that its configuration counts, as a branch for speech.
        layers=max(
            _whole(settings, "num_hidden_layers"), sum(name.endswith(".input_layernorm.weight") for name in tensors)
        ),
        key_values=head * (_whole(settings, "num_key_value_heads") if "num_key_value_heads" in settings else heads),
        inner=_whole(settings, "intermediate_size"),
        tied=not any(name.endswith("lm_head.weight") for name in counts),
        adapters=adapters,
        narrow=rank * len(adapted),
    )


def needs(config: Config, model: ModelShape, *, reference: bool) -> list[MemoryNeed]:
    """Of every role. reference: whether the objective compares with the start model."""
    return [
        MemoryNeed(role="driver", members=1, memory={"process": HOLDS["driver"]}),
        MemoryNeed(role="controller", members=1, memory={"process": HOLDS["controller"]}),
        rollout_memory(config, model),
        MemoryNeed(
            role="reward", members=config.reward.num_servers, memory={"process, without raters": HOLDS["reward"]}
        ),
        *_decoders(config),
        learner_memory(config, model, reference=reference),
    ]


def _decoders(config: Config) -> list[MemoryNeed]:
    """Of a codec's weights nothing is known here; the rest is what a reward server holds, at most."""
    d, parts = config.reward.decoders, {"process, without the codec": HOLDS["reward"]}
    return [MemoryNeed(role="decoder", members=d.num_workers, memory=parts)] if d.num_workers else []


def cache_of_sequence(config: Config, model: ModelShape) -> float:
    """Bytes of keys and values of a reply of the greatest length."""
    return 2.0 * model.layers * model.key_values * width_of(config) * config.model.max_model_len


def in_flight(config: Config) -> int:
    """Replies that one engine has at once."""
    share = -(-config.rollout.batch_size // config.rollout.num_workers) * config.rollout.n
    return min(config.rollout.max_num_seqs, share)


def rollout_memory(config: Config, model: ModelShape) -> MemoryNeed:
    """A rollout worker. On a CPU its engine takes the room for keys and values at its start, on a GPU whatever
    `rollout.gpu_memory_utilization` leaves beside the rest."""
    r, b = config.rollout, width_of(config)
    weights = model.parameters * b / r.tensor_parallel_size
    # The sampler works in float32, on the logits of all replies in flight.
    parts = {"weights": weights, "sampling": 2.0 * FLOAT32 * in_flight(config) * model.vocabulary}
    if r.num_gpus > 0:
        return MemoryNeed(
            role="rollout",
            members=r.num_workers,
            memory={"process": HOLDS["rollout"], "weights while they are taken": model.sent * b},
            device=parts,
            gpus=r.num_gpus,
        )
    cache = {"keys and values": max(1, round(r.cpu_kv_cache_gib)) * GIB}
    return MemoryNeed(role="rollout", members=r.num_workers, memory={"process": HOLDS["rollout"]} | parts | cache)


def learner_memory(config: Config, model: ModelShape, *, reference: bool) -> MemoryNeed:
    """A learner rank at its ZeRO stage."""
    c, b = config.learner, width_of(config)
    stage, ranks, trained = c.zero_stage, c.num_workers, model.trained
    weights = (model.parameters + model.adapters) * b
    parts: dict[str, float] = {"weights": weights / ranks if stage == 3 else weights}
    if stage == 3:
        parts["weights gathered to be saved"] = weights
    parts["gradients"] = trained * b / (ranks if stage >= 2 else 1)
    if stage == 0:
        parts["optimiser"] = 2.0 * trained * b
    else:
        # Two moments and the weights, in float32, of this rank's part, and the gradient of the step: of the whole part,
        # or at stage 3 of one group of it after another.
        part = trained / ranks
        step = min(part, SUB_GROUP) if stage == 3 else part
        parts["optimiser"] = FLOAT32 * (3.0 * part + step)
        parts["reducing"] = b * (BUCKET if c.num_gpus > 0 else min(BUCKET, trained))
    if reference and not model.adapters:  # else it is the model without them
        parts["start model"] = weights
    parts |= activation_memory(config, model)
    base = {"process": HOLDS["learner"]}
    saving: dict[str, float] = {"weights while they are saved": (model.named + model.adapters) * b}
    if c.num_gpus > 0:
        return MemoryNeed(role="learner", members=ranks, memory=base | saving, device=parts, gpus=c.num_gpus)
    return MemoryNeed(role="learner", members=ranks, memory=base | saving | parts)


def activation_memory(config: Config, model: ModelShape) -> dict[str, float]:
    """Of one micro-batch: what the backward pass needs, and the logits that are held at once."""
    c, b, length = config.learner, width_of(config), config.model.max_model_len
    share = -(-rows_of_step(config) // c.num_workers)
    most = share * length
    paired = config.algorithm.name == "dpo"
    tokens = min(most, max(c.max_tokens_per_micro_batch, 2 * length if paired else length))
    cells = min(most, LAID_OUT * tokens) if c.sequence_packing else tokens  # of attention, which lays rows out
    # A norm keeps its input, in float32, what it normed, and its output. A layer has two; besides it keeps queries and
    # the attention's output, keys and values, and of the feed-forward part gate, activated gate, up, and their product.
    norm = model.width * (FLOAT32 + 2 * b)
    layer = tokens * (2 * norm + b * 4 * model.inner) + cells * b * (2 * model.width + 2 * model.key_values)
    if c.sequence_packing:
        layer += tokens * b * model.width  # what attention gave, put together again
    # Kept of every layer: all of it, or what goes in, and then all of one at a time.
    kept = model.layers * tokens * b * model.width + layer if c.gradient_checkpointing else model.layers * layer
    # Packed, a micro-batch may be replies almost alone.
    scored = tokens if c.sequence_packing else tokens * min(config.rollout.max_new_tokens, length) / length
    return {
        "activations": float(kept + tokens * (norm + b * model.narrow)),
        "logits": float(LOGIT_COPIES * FLOAT32 * min(scored * model.vocabulary, max(LOGITS, model.vocabulary))),
    }


def rows_of_step(config: Config) -> int:
    """Rows of a step, all ranks together."""
    paired = config.algorithm.name == "dpo"
    return (2 * config.rollout.batch_size if paired else config.replies) + config.anchor.batch_size


def checkpoint(config: Config, model: ModelShape) -> float:
    """Bytes of a checkpoint on disk: the model, and the optimiser of all ranks."""
    b, c = width_of(config), config.learner
    weights = (model.parameters + model.adapters) * b
    if c.zero_stage == 0:  # each rank writes the whole
        return weights + 2.0 * model.trained * b * c.num_workers
    return weights + 3.0 * FLOAT32 * model.trained


def width_of(config: Config) -> int:
    """Bytes of an element of the model."""
    return {"float32": 4, "bfloat16": 2}[config.model.dtype]


def _whole(settings: Mapping[str, Any], name: str) -> int:
    value = settings.get(name)
    if type(value) is not int or value < 1:
        raise InputError(f"model.path: its config.json has {name} {value!r}, not a whole number above 0")
    return value


def _product(dimensions: list[int]) -> int:
    product = 1
    for dimension in dimensions:
        product *= dimension
    return product
