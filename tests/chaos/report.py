"""What was done to a run, how soon it was noticed, and how soon all was as before."""

from datetime import datetime
from pathlib import Path

from tests.chaos.schedule import KINDS
from tests.chaos.storm import Storm


def rows(storm: Storm) -> list[dict]:
    """A row a fault: kind, whom it met, iteration, seconds until the run said that it had noticed, and until all was as
    before: a successor at work, a new checkpoint, or, of a node and of a judge, the next whole iteration."""
    table = []
    for wound in storm.wounds:
        healed = storm.healed(wound)
        table.append(
            {
                "fault": KINDS[wound.fault.kind],
                "met": wound.what,
                "after iteration": wound.fault.iteration,
                "noticed": _seconds(storm.noticed(wound), wound.time),
                "as before": _seconds(healed, wound.time) if healed is not None else wound.back,
            }
        )
    return table


def markdown(table: list[dict]) -> str:
    names = list(table[0])
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in table:
        cells = [
            "" if row[n] is None else f"{row[n]:.1f} s" if isinstance(row[n], float) else str(row[n]) for n in names
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def _seconds(event: dict | None, since: float) -> float | None:
    return datetime.fromisoformat(event["time"]).timestamp() - since if event is not None else None
