"""`make soak`: a long run of the playground, and the memory of every member over it.

    python -m tests.chaos.soak --iterations 200 --out runs/soak

Memory is what a process holds alone (USS). A member leaks when the line through its second half climbs by more than
`LARGEST` of it and by more than `LEAST` over as many iterations again. Exit code 0: nobody does.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import psutil

from observability.run_directory import read_iterations
from tests.chaos.members import megabytes, members
from tests.chaos.storm import ROOT

LARGEST = 0.05
"""Growth over half of the run, as a share of the member's memory, that is still called flat."""
LEAST = 4.0
"""MiB of such growth below which nothing is said: Ray's own processes are so small that 5 % of them is an arena."""
LONGEST_ITERATION = 300.0
"""Seconds without one, the start and the end of the run included, after which it is given up."""

Samples = dict[str, list[tuple[int, float]]]
"""(iteration, MiB) by member."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="a folder, made anew")
    options = parser.parse_args()
    directory = options.out.absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    samples = run(directory, options.iterations)
    table, leaking = judge(samples, options.iterations)
    (directory / "soak.md").write_text(table + "\n")
    print(table)
    for name in leaking:
        print(f"LEAKS: {name}", file=sys.stderr)
    return 1 if leaking else 0


def run(directory: Path, iterations: int) -> Samples:
    """Runs the job, and looks at everybody once an iteration."""
    command = [
        sys.executable, "-m", "duet", "train", "run.name=soak", f"run.directory={directory}",
        f"train.num_steps={iterations}", "rollout.num_workers=1", "rollout.batch_size=8", "anchor.batch_size=8",
        "checkpoint.interval=20", "learner.min_lr_ratio=1.0",
    ]  # fmt: skip
    samples: Samples = defaultdict(list)
    with (directory / "driver.log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            seen, last_change = 0, time.monotonic()
            while driver.poll() is None:
                file = directory / "soak/iterations.parquet"
                done = read_iterations(directory / "soak").num_rows if file.is_file() else 0
                if done > seen:
                    seen, last_change = done, time.monotonic()
                    for name, process in named(psutil.Process(driver.pid)).items():
                        try:
                            samples[name].append((done, megabytes(process)))
                        except psutil.Error:
                            continue  # the run is ending
                if time.monotonic() - last_change > LONGEST_ITERATION:
                    raise SystemExit(f"soak: no iteration for {LONGEST_ITERATION:.0f} s; {directory / 'driver.log'}")
                time.sleep(0.2)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    if seen < iterations:
        raise SystemExit(f"soak: the run ended after {seen} iterations; {directory / 'driver.log'}")
    return samples


def named(driver: psutil.Process) -> dict[str, psutil.Process]:
    """Every member by name, the driver and Ray's own two included."""
    found = {"driver": driver}
    for role, processes in members(driver).items():
        found |= {f"{role}-{place}": process for place, process in enumerate(processes)}
    for process in driver.children():
        for name in ("raylet", "gcs_server"):
            if process.name() == name:
                found[name] = process
    return found


def judge(samples: Samples, iterations: int) -> tuple[str, list[str]]:
    """A table, and who leaks. Growth is that of a straight line through the second half (Theil and Sen's, which one
    burst does not bend)."""
    marks = [iterations // 10, iterations // 2, iterations]
    lines = [
        f"| member | {' | '.join(f'MiB after {mark}' for mark in marks)} | growth over the second half |",
        f"|{'---|' * (len(marks) + 2)}",
    ]
    leaking = []
    for name, series in sorted(samples.items()):
        half = np.array([point for point in series if point[0] > iterations / 2])
        if len(half) < iterations / 4:
            continue  # of somebody who came and went
        first, second = np.triu_indices(len(half), 1)
        apart = half[second, 0] - half[first, 0]
        slope = np.median((half[second, 1] - half[first, 1])[apart > 0] / apart[apart > 0])
        grown = slope * iterations / 2
        growth = grown / np.median(half[:, 1])
        if growth > LARGEST and grown > LEAST:
            leaking.append(name)
        at = [min(series, key=lambda point: abs(point[0] - mark))[1] for mark in marks]
        lines.append(f"| {name} | {' | '.join(f'{value:.0f}' for value in at)} | {growth:+.1%} |")
    return "\n".join(lines), leaking


if __name__ == "__main__":
    sys.exit(main())
