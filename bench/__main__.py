"""`make bench`: every part in a process of its own, one table, `bench/results.json` and `docs/performance.md`.

    make bench                                       all of it; some forty minutes on two cores
    make bench ARGS="rollout learner --repeats 5"    these parts only; the lines of others stay as they were

A part is a module with `measure(repeats)`, which returns rows. Only ratios mean anything: both sides of each are taken
in the same run. The exit code is 1 when a part failed; a goal that is not met is no failure.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from bench.fixtures import ROOT
from bench.page import write_page
from bench.rows import BenchRow

PARTS = ("start", "rollout", "vs_trl", "overlap", "learner", "transfer", "control", "simulation")
RESULTS = ROOT / "bench/results.json"
REPEATS = 3
PART_SECONDS = 1800.0
GRACE_SECONDS = 20.0
"""For a part that is ended, to end its Ray."""


def main() -> int:
    there = [name for name in PARTS if (ROOT / "bench" / f"{name}.py").is_file()]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(there)} (default: all)")
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="default: %(default)s")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # a part's own process: where its rows go
    given = parser.parse_args()
    if unknown := set(given.parts) - set(there):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    if given.into is not None:
        (name,) = given.parts
        rows = importlib.import_module(f"bench.{name}").measure(given.repeats)
        given.into.write_text(json.dumps([asdict(row) for row in rows]))
        return 0
    if not given.parts:
        write([])
    failed = [name for name in given.parts or there if not run(name, given.repeats)]
    rows = read()
    Console().print(table(rows))
    write_page(rows)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run(name: str, repeats: int) -> bool:
    """Runs a part, and puts its lines in the place of older ones. Whether it came to its end."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        into, log = Path(directory) / "rows.json", Path(directory) / "log"
        command = [sys.executable, "-m", "bench", name, "--repeats", str(repeats), "--into", str(into)]
        try:
            with log.open("wb") as file:
                run_whole(command, file)
        except subprocess.SubprocessError as error:
            print(f"{name}: {error}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
            return False
        rows = [BenchRow(**fields) for fields in json.loads(into.read_text())]
    print(f"{name}: {len(rows)} lines in {time.perf_counter() - began:.0f} s", flush=True)
    own = {row.name for row in rows}
    write([row for row in read() if row.name not in own] + rows)
    return True


def run_whole(command: list[str], log: IO[bytes]) -> None:
    """Runs a part. One that takes too long ends with everything that it started, or that would go on beside the next.
    Raises SubprocessError."""
    with subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            code = process.wait(PART_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def read() -> list[BenchRow]:
    """The lines so far."""
    return [BenchRow(**fields) for fields in json.loads(RESULTS.read_text())] if RESULTS.is_file() else []


def write(rows: list[BenchRow]) -> None:
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False) + "\n")


def table(rows: list[BenchRow]) -> Table:
    """As it is shown on a terminal."""
    shown = Table("what", "ratio", "goal", "met", "spread", box=None)
    for row in rows:
        low, high = row.spread
        mark = ("yes" if row.met else "[bold red]no[/]") if row.goal else ""
        shown.add_row(row.name, f"{row.ratio:.3g}", row.goal, mark, f"{low:.3g} – {high:.3g}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
