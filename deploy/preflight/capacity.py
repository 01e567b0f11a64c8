"""What a run needs against what there is: memory by role, memory to hand weights on in, room for checkpoints. Pure."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from configs.schema import Config
from deploy.preflight import memory
from deploy.preflight.environment import Machine, Node
from deploy.preflight.finding import CheckReporter, Finding, format_size
from deploy.preflight.memory import MemoryNeed, ModelShape

MEMORY, SHARED, DISK = CheckReporter("memory"), CheckReporter("shared memory"), CheckReporter("disk")
TIGHT = 0.9
"""Share of what is free above which an estimate is too near to it to be trusted."""
TOKEN_BYTES = 9
"""Of a recorded token: id, channel, log-probability, before compression."""
VERSIONS = {"shm": 1.0, "filesystem": 2.0, "object_store": 2.0, "broadcast": 0.0}
"""Of the weights that are there at once, by `weight_sync.backend`: in shared memory each is written over the one
before; elsewhere the one before goes when the next is there; what is broadcast lies nowhere."""
ANSWERS = 20 * memory.MIB
"""What a checkpoint keeps of what judges said, at most (`reward.pool.MOST_ANSWERS`)."""
SMALLER = (
    "lower learner.max_tokens_per_micro_batch, rollout.cpu_kv_cache_gib or the number of members, or raise "
    "learner.zero_stage"
)


def check_memory(config: Config, model: ModelShape, needs: Sequence[MemoryNeed], machine: Machine) -> Iterator[Finding]:
    """All members on this machine."""
    for need in needs:
        if need.role not in ("driver", "controller"):
            yield MEMORY.fine(_of(need))
    yield from check_cache(config, model, machine.gpus[0].total if machine.gpus else None)
    total = sum(need.members * need.host for need in needs)
    total += _handed_on(config, model, "shm") + _handed_on(config, model, "object_store")
    said = f"all members together need about {format_size(total)} of the machine's {format_size(machine.memory)}"
    if total > machine.memory:
        yield MEMORY.error(said, SMALLER)
    elif total > TIGHT * machine.memory_free:
        yield MEMORY.warning(f"{said}, of which {format_size(machine.memory_free)} are free now", SMALLER)
    else:
        yield MEMORY.fine(f"{said}, of which {format_size(machine.memory_free)} are free now")
    if machine.gpus:
        yield from _check_gpus(needs, min(gpu.total for gpu in machine.gpus), min(gpu.free for gpu in machine.gpus))


def check_nodes(
    config: Config, model: ModelShape, needs: Sequence[MemoryNeed], nodes: Sequence[Node]
) -> Iterator[Finding]:
    """All members on a cluster. What its GPUs have, Ray does not say."""
    for need in needs:
        if need.role not in ("driver", "controller"):
            yield MEMORY.fine(_of(need))
    yield from check_cache(config, model, None)
    total, largest = sum(node.memory for node in nodes), max(node.memory for node in nodes)
    wanted = sum(need.members * need.host for need in needs) + _handed_on(config, model, "shm")
    said = f"all members together need about {format_size(wanted)} of the cluster's {format_size(total)}"
    if wanted > total:
        yield MEMORY.warning(f"{said} now", "add nodes, or lower the numbers of members")
    else:
        yield MEMORY.fine(said)
    for need in needs:
        if need.host > largest:
            said = f"one {need.role} member needs {format_size(need.host)}, "
            said += f"and no node has more than {format_size(largest)} now"
            yield MEMORY.warning(said, f"take larger nodes, or {SMALLER}")
    passed = _handed_on(config, model, "object_store")
    store = min(node.resources.get("object_store_memory", 0.0) for node in nodes)
    if passed > store:
        yield SHARED.warning(
            f"weights are handed on in Ray's object store: two versions, {format_size(passed)}; "
            f"a node has {format_size(store)}, and "
            "writes to disk what is too much",
            "start nodes with more (ray start --object-store-memory), or set weight_sync.backend=filesystem",
        )


def check_cache(config: Config, model: ModelShape, gpu: float | None) -> Iterator[Finding]:
    """Keys and values of the replies in flight, in what an engine has for them. gpu: bytes of one; None: not known."""
    r, each, replies = config.rollout, memory.cache_of_sequence(config, model), memory.in_flight(config)
    if r.num_gpus > 0:
        if gpu is None:
            return
        have = r.tensor_parallel_size * (r.gpu_memory_utilization * gpu - memory.rollout_memory(config, model).on_gpu)
        key = "rollout.gpu_memory_utilization"
    else:
        have, key = max(1, round(r.cpu_kv_cache_gib)) * memory.GIB, "rollout.cpu_kv_cache_gib"
    if have < each:
        yield MEMORY.error(
            f"{key}: {format_size(max(have, 0.0))} are left for keys and values, and one reply of model.max_model_len "
            "= "
            f"{config.model.max_model_len} takes {format_size(each)}; the engine would not start",
            f"raise {key}, or lower model.max_model_len",
        )
    elif have < replies * each:
        yield MEMORY.warning(
            f"{key}: {format_size(have)} hold keys and values of "
            f"{int(have // each)} of the {replies} replies that a worker "
            "has in flight, should all come to their greatest length; the others wait",
            f"raise {key}, or add workers",
        )


def check_shared_memory(config: Config, model: ModelShape, machine: Machine) -> Iterator[Finding]:
    """Room to hand weights on in."""
    wanted = _handed_on(config, model, "shm")
    free = format_size(machine.shared_free)
    said = f"weights are handed on in {machine.shared}: one version, {format_size(wanted)}; {free} are free"
    if wanted > machine.shared_free:
        yield SHARED.error(said, "give the container more (docker run --shm-size, a memory emptyDir on Kubernetes)")
    else:
        yield SHARED.fine(said)


def check_disk(config: Config, model: ModelShape, directory: Path, free: float) -> Iterator[Finding]:
    """Room for checkpoints and records. directory: where runs are; free: bytes there."""
    each, steps, checkpoint = memory.checkpoint(config, model) + ANSWERS, config.train.num_steps, config.checkpoint
    made = -(-steps // checkpoint.interval) if checkpoint.interval else 1
    # One is written whole before the oldest goes.
    kept = made if checkpoint.max_to_keep == 0 else min(made, checkpoint.max_to_keep + 1)
    records = TOKEN_BYTES * steps * config.replies * config.rollout.max_new_tokens
    weights = _handed_on(config, model, "filesystem")
    wanted = kept * each + records + weights
    on_their_way = f", {format_size(weights)} of weights on their way" if weights else ""
    said = (
        f"{directory}: {kept} checkpoints × {format_size(each)}{on_their_way} "
        f"and at most {format_size(records)} of replies, "
        f"{format_size(wanted)} in all; {format_size(free)} are free"
    )
    if wanted > free:
        remedy = "lower checkpoint.max_to_keep (0 keeps all), raise checkpoint.interval, or name another run.directory"
        yield DISK.error(said, remedy)
    elif wanted > TIGHT * free:
        yield DISK.warning(said, "make room, or name another run.directory")
    else:
        yield DISK.fine(said)


def _check_gpus(needs: Sequence[MemoryNeed], total: float, free: float) -> Iterator[Finding]:
    for need in needs:
        if not need.gpus:
            continue
        together = max(1, int(1 / need.gpus))
        wanted = together * need.on_gpu
        said = (
            f"{need.role}: {together} × {format_size(need.on_gpu)} on a GPU, "
            f"{format_size(wanted)} of its {format_size(total)}"
        )
        if wanted > total:
            yield MEMORY.error(said, f"raise {need.role}.num_gpus" + (f"; {SMALLER}" if need.role == "learner" else ""))
        elif wanted > TIGHT * free:
            yield MEMORY.warning(f"{said}, of which {format_size(free)} are free now", SMALLER)
        else:
            yield MEMORY.fine(said)


def _handed_on(config: Config, model: ModelShape, exchange: str) -> float:
    """Bytes of weights on their way, where they go this way."""
    return VERSIONS[exchange] * model.sent * memory.width_of(config) if config.weight_sync.backend == exchange else 0.0


def _of(need: MemoryNeed) -> str:
    """What a member holds, largest first."""

    def listed(parts: dict[str, float]) -> str:
        return ", ".join(f"{what} {format_size(n)}" for what, n in sorted(parts.items(), key=lambda part: -part[1]))

    text = f"{need.role}: {need.members} × {format_size(need.host)} ({listed(need.memory)})"
    return text + (
        f", and {format_size(need.on_gpu)} of GPU memory each ({listed(need.device)})" if need.device else ""
    )
