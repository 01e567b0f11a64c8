"""Configurations to examine, and ways to look at what is found."""

from collections.abc import Iterable
from pathlib import Path

from configs.load import load_config
from configs.schema import Config
from deploy.preflight.environment import Gpu, Machine
from deploy.preflight.finding import Finding, Severity
from deploy.preflight.memory import GIB, ModelShape

SEVEN_BILLION = ModelShape(
    parameters=7_000_000_000,
    trained=7_000_000_000,
    vocabulary=150_000,
    width=3584,
    layers=28,
    key_values=512,
    inner=18944,
    tied=False,
)


def configured(root: Path, *overrides: str) -> Config:
    """The playground's configuration with changes."""
    return load_config(root / "configs/playground.yaml", list(overrides))


def machine(**changes) -> Machine:
    fields = {
        "cpus": 8,
        "memory": 64.0 * GIB,
        "memory_free": 60.0 * GIB,
        "shared": Path("/dev/shm"),
        "shared_free": 32.0 * GIB,
        "gpus": (),
    }
    return Machine(**(fields | changes))


def gpus(count: int, gib: float = 80.0, free: float | None = None) -> tuple[Gpu, ...]:
    left = gib if free is None else free
    return (Gpu(name="H100", total=gib * GIB, free=left * GIB),) * count


def only(found: Iterable[Finding], state: Severity) -> Finding:
    """The one finding that is not fine, which must be of this state and say what to do."""
    bad = [finding for finding in found if finding.state is not Severity.FINE]
    assert [finding.state for finding in bad] == [state], bad
    assert bad[0].remedy, f"without a remedy: {bad[0]}"
    return bad[0]


def all_fine(found: Iterable[Finding]) -> list[Finding]:
    """Every finding, of which there must be some and all fine."""
    found = list(found)
    assert found
    assert {finding.state for finding in found} == {Severity.FINE}, found
    return found
