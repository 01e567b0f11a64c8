"""What the controller tells the watching driver: a snapshot, taken at any moment."""

from dataclasses import dataclass, field

from controller.iteration import Iteration


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands. Sent from the controller actor to the display; plain data only."""

    stage: str
    """What is being done, in words: "starting rollout workers", "evaluating before", "iteration", "done"."""
    iterations_total: int
    iterations: list[Iteration] = field(default_factory=list)
    """Finished iterations newer than the ones that the caller has seen."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user since the last call, oldest first."""
    phase: str = ""
    """Phase of the running iteration."""
    finished: bool = False
