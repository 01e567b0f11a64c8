"""What the parts share: the playground's configuration, and a Ray cluster that is there for one part only."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from cluster import ray_cluster
from configs.load import load_config, make_absolute
from configs.schema import Config
from configs.validate import local_cluster_resources

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parent.parent


def playground(*overrides: str) -> Config:
    """The playground's configuration with these keys otherwise, from any working directory."""
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        config = load_config(ROOT / "configs/playground.yaml", list(overrides))
        make_absolute(config)
    finally:
        os.chdir(here)
    return config


def apart(function: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module returns, called in a process of its own: nothing that one part has imported, started
    or set is there for another."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def joined(config: Config, cpus: int | None = None) -> Iterator[None]:
    """A Ray cluster of this machine with room for the configuration's members. cpus: what it counts; None: as a run
    would have it."""
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    # Ray has its workers give way to all other processes, and the other side of a comparison is one of those.
    os.environ.update(RAY_worker_niceness="0")  # so is it spelt
    # Actors find this package wherever it was started from.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    counted, resources = local_cluster_resources(config, os.cpu_count() or 1)
    ray_cluster.start(cpus or counted, resources)
    try:
        yield
    finally:
        ray.shutdown()
