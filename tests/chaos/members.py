"""Finds the processes of a run by what they are, and looks at their memory."""

import contextlib

import psutil

TITLES = {
    "rollout": "ray::RolloutWorker",
    "reward": "ray::RewardServer",
    "learner": "ray::LearnerRank",
    "controller": "ray::Controller",
}
"""What the command line of an actor's process begins with; Ray writes it."""
SPAWNED = "--multiprocessing-fork"
"""How the command line of an engine ends. vLLM would call it VLLM::EngineCore, but its setproctitle does nothing where
the environment is small (as under `env -i`)."""


def members(root: psutil.Process) -> dict[str, list[psutil.Process]]:
    """Processes below `root` by role, oldest first. An engine is what a rollout worker spawned."""
    found: dict[str, list[psutil.Process]] = {role: [] for role in (*TITLES, "engine")}
    for process in root.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # gone meanwhile
            title = _title(process)
            for role, start in TITLES.items():
                if title.startswith(start):
                    found[role].append(process)
    for worker in found["rollout"]:
        with contextlib.suppress(psutil.Error):
            found["engine"] += [child for child in worker.children() if _is_engine(child)]
    return {role: sorted(processes, key=psutil.Process.create_time) for role, processes in found.items()}


def _is_engine(process: psutil.Process) -> bool:
    title = _title(process)
    return title.startswith("VLLM::EngineCore") or title.endswith(SPAWNED)


def _title(process: psutil.Process) -> str:
    """Command line of a living process; empty for a zombie."""
    return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline()).strip()


def megabytes(process: psutil.Process) -> float:
    """Memory that the process alone holds (USS), MiB."""
    return process.memory_full_info().uss / 2**20
