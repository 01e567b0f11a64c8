"""Compares needs with capacity: memory by role, memory for weight sync, disk space for checkpoints. Pure."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.schema import Config
from deploy.preflight import memory
from deploy.preflight.environment import Machine, Node
from deploy.preflight.finding import CheckReporter, Finding, format_size
from deploy.preflight.memory import MemoryNeed, ModelShape

MEMORY, SHARED, DISK = CheckReporter("memory"), CheckReporter("shared memory"), CheckReporter("disk")
TIGHT_SHARE = 0.9
"""Share of the free space above which an estimate is not safe."""
TOKEN_BYTES = 9
"""Bytes of a recorded token before compression: id, channel, log-probability."""
NUM_WEIGHT_VERSIONS = {"shm": 1.0, "filesystem": 2.0, "object_store": 2.0, "broadcast": 0.0}
"""Versions of the weights that exist at once, by `weight_sync.backend`. In memory a version overwrites the one
before. Files and objects of a version are removed after the next version is complete. A broadcast stores nothing."""
MAX_JUDGE_CACHE = 20 * memory.MIB
"""Largest judge cache in a checkpoint (`reward.pool.MAX_SAVED_ANSWERS`)."""
REDUCE = (
    "lower learner.max_tokens_per_micro_batch, rollout.cpu_kv_cache_gib or the number of actors, "
    "or raise learner.zero_stage"
)


def check_memory(config: Config, model: ModelShape, needs: Sequence[MemoryNeed], machine: Machine) -> Iterator[Finding]:
    """Check the memory of all actors on this machine."""
    for need in needs:
        if need.role not in ("driver", "controller"):
            yield MEMORY.fine(_describe(need))
    yield from check_cache(config, model, machine.gpus[0].total if machine.gpus else None)
    total = sum(need.count * need.host for need in needs)
    total += _weight_bytes(config, model, "shm") + _weight_bytes(config, model, "object_store")
    text = f"all actors together need about {format_size(total)} of the machine's {format_size(machine.memory)}"
    if total > machine.memory:
        yield MEMORY.error(text, REDUCE)
    elif total > TIGHT_SHARE * machine.memory_free:
        yield MEMORY.warning(f"{text}; {format_size(machine.memory_free)} are free now", REDUCE)
    else:
        yield MEMORY.fine(f"{text}; {format_size(machine.memory_free)} are free now")
    if machine.gpus:
        yield from _check_gpus(needs, min(gpu.total for gpu in machine.gpus), min(gpu.free for gpu in machine.gpus))


def check_nodes(
    config: Config, model: ModelShape, needs: Sequence[MemoryNeed], nodes: Sequence[Node]
) -> Iterator[Finding]:
    """Check the memory of all actors on a cluster. Ray does not report GPU memory."""
    for need in needs:
        if need.role not in ("driver", "controller"):
            yield MEMORY.fine(_describe(need))
    yield from check_cache(config, model, None)
    total, largest = sum(node.memory for node in nodes), max(node.memory for node in nodes)
    wanted = sum(need.count * need.host for need in needs) + _weight_bytes(config, model, "shm")
    text = f"all actors together need about {format_size(wanted)} of the cluster's {format_size(total)}"
    if wanted > total:
        yield MEMORY.warning(f"{text} now", "add nodes, or lower the number of actors")
    else:
        yield MEMORY.fine(text)
    for need in needs:
        if need.host > largest:
            text = f"one {need.role} actor needs {format_size(need.host)}; the largest node has {format_size(largest)}"
            yield MEMORY.warning(text, f"use larger nodes, or {REDUCE}")
    stored = _weight_bytes(config, model, "object_store")
    store = min(node.resources.get("object_store_memory", 0.0) for node in nodes)
    if stored > store:
        yield SHARED.warning(
            f"weights are sent through Ray's object store: two versions, {format_size(stored)}; a node has "
            f"{format_size(store)} and spills the rest to disk",
            "start nodes with a larger store (ray start --object-store-memory), or set weight_sync.backend=filesystem",
        )


def check_cache(config: Config, model: ModelShape, gpu: float | None) -> Iterator[Finding]:
    """Check the KV cache against the replies in flight. `gpu`: bytes of one GPU; None if unknown."""
    r, sequence, replies = config.rollout, memory.cache_of_sequence(config, model), memory.in_flight(config)
    if r.num_gpus > 0:
        if gpu is None:
            return
        available = r.tensor_parallel_size * (
            r.gpu_memory_utilization * gpu - memory.rollout_memory(config, model).on_gpu
        )
        key = "rollout.gpu_memory_utilization"
    else:
        available, key = max(1, round(r.cpu_kv_cache_gib)) * memory.GIB, "rollout.cpu_kv_cache_gib"
    if available < sequence:
        yield MEMORY.error(
            f"{key}: {format_size(max(available, 0.0))} are left for the KV cache, and one reply of "
            "model.max_model_len = "
            f"{config.model.max_model_len} takes {format_size(sequence)}; the engine cannot start",
            f"raise {key}, or lower model.max_model_len",
        )
    elif available < replies * sequence:
        yield MEMORY.warning(
            f"{key}: {format_size(available)} hold the KV cache of "
            f"{int(available // sequence)} of a worker's {replies} replies in flight, if all "
            "reach the greatest length; the others wait",
            f"raise {key}, or add workers",
        )


def check_shared_memory(config: Config, model: ModelShape, machine: Machine) -> Iterator[Finding]:
    """Check the shared memory for one version of the weights."""
    wanted = _weight_bytes(config, model, "shm")
    free = format_size(machine.shared_free)
    text = f"weights are sent through {machine.shared}: one version, {format_size(wanted)}; {free} are free"
    if wanted > machine.shared_free:
        yield SHARED.error(text, "enlarge it (docker run --shm-size, or a memory emptyDir on Kubernetes)")
    else:
        yield SHARED.fine(text)


def check_disk(config: Config, model: ModelShape, directory: Path, free: float) -> Iterator[Finding]:
    """Check the disk space for checkpoints and records. `directory`: of the runs. `free`: free bytes there."""
    size, steps, checkpoint = (
        memory.checkpoint(config, model) + MAX_JUDGE_CACHE,
        config.train.num_steps,
        config.checkpoint,
    )
    written = -(-steps // checkpoint.interval) if checkpoint.interval else 1
    # The oldest checkpoint is removed after a new one is complete.
    kept = written if checkpoint.max_to_keep == 0 else min(written, checkpoint.max_to_keep + 1)
    records = TOKEN_BYTES * steps * config.replies * config.rollout.max_new_tokens
    weights = _weight_bytes(config, model, "filesystem")
    wanted = kept * size + records + weights
    published = f", {format_size(weights)} of published weights" if weights else ""
    text = (
        f"{directory}: {kept} checkpoints × {format_size(size)}{published} and at most "
        f"{format_size(records)} of replies, {format_size(wanted)} in all; {format_size(free)} are free"
    )
    if wanted > free:
        remedy = "lower checkpoint.max_to_keep (0 keeps all), raise checkpoint.interval, or set another run.directory"
        yield DISK.error(text, remedy)
    elif wanted > TIGHT_SHARE * free:
        yield DISK.warning(text, "free some space, or set another run.directory")
    else:
        yield DISK.fine(text)


def _check_gpus(needs: Sequence[MemoryNeed], total: float, free: float) -> Iterator[Finding]:
    for need in needs:
        if not need.gpus:
            continue
        sharing = max(1, int(1 / need.gpus))
        wanted = sharing * need.on_gpu
        text = (
            f"{need.role}: {sharing} × {format_size(need.on_gpu)} on a GPU, "
            f"{format_size(wanted)} of its {format_size(total)}"
        )
        if wanted > total:
            yield MEMORY.error(text, f"raise {need.role}.num_gpus" + (f"; {REDUCE}" if need.role == "learner" else ""))
        elif wanted > TIGHT_SHARE * free:
            yield MEMORY.warning(f"{text}; {format_size(free)} are free now", REDUCE)
        else:
            yield MEMORY.fine(text)


def _weight_bytes(config: Config, model: ModelShape, exchange: str) -> float:
    """Return the bytes of published weights if `weight_sync.backend` is `exchange`, else 0."""
    if config.weight_sync.backend != exchange:
        return 0.0
    return NUM_WEIGHT_VERSIONS[exchange] * model.sent * memory.width_of(config)


def _describe(need: MemoryNeed) -> str:
    """Describe the memory of one actor by its parts, largest first."""

    def listed(parts: dict[str, float]) -> str:
        return ", ".join(f"{what} {format_size(n)}" for what, n in sorted(parts.items(), key=lambda part: -part[1]))

    text = f"{need.role}: {need.count} × {format_size(need.host)} ({listed(need.memory)})"
    return text + (
        f", and {format_size(need.on_gpu)} of GPU memory each ({listed(need.device)})" if need.device else ""
    )
