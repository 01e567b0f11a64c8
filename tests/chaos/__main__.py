"""`make chaos`: hurts a run of the playground in every way of `schedule.KINDS`, by a seed, and checks that it is whole.

    python -m tests.chaos --seed 0 --iterations 40 --out runs/chaos

Exit code 0: the run came through and nothing is wrong with its records; 1: it did not, with what is wrong.
"""

import argparse
import os
import secrets
import shutil
import sys
from pathlib import Path

from tests.chaos import report
from tests.chaos.schedule import FULL, KINDS, schedule
from tests.chaos.storm import ROOT, Lost, Storm, own_mounts, small_disk
from tests.chaos.verdict import complaints, missing_by_reason

DISK_MEGABYTES = 180
"""Room for two checkpoints of the playground and the one that is being written, and some."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=40, help="at least so many; more where a fault needs them")
    parser.add_argument("--kinds", help=f"faults, in any order, separated by commas: {', '.join(KINDS)} (default: all)")
    parser.add_argument("--in-process", action="store_true", help="engines inside their workers: quicker to start")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="a folder, made anew")
    options = parser.parse_args()
    # Before Ray is imported: the nodes, the driver and this process share a token of their own.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    kinds = tuple(options.kinds.split(",")) if options.kinds else FULL
    if "disk" in kinds and "DUET_OWN_MOUNTS" not in os.environ:
        first = own_mounts()
        if not first:
            print("chaos: cannot mount a small disk here (unshare is not allowed): 'disk' cannot be done; leave it out "
                  "with --kinds", file=sys.stderr)  # fmt: skip
            return 1
        os.environ["DUET_OWN_MOUNTS"] = "1"
        os.execvp(first[0], [*first, sys.executable, "-m", "tests.chaos", *sys.argv[1:]])
    directory = options.out.absolute()
    shutil.rmtree(directory, ignore_errors=True)
    if "disk" in kinds:
        small_disk(directory / "storm" / "checkpoints", DISK_MEGABYTES)
    try:
        return hurt(directory, kinds, options.iterations, options.seed, options.in_process)
    except Lost as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1


def hurt(directory: Path, kinds: tuple[str, ...], iterations: int, seed: int, in_process: bool) -> int:
    """Does it all. Returns the exit code. Raises Lost."""
    from configs.load import load_config
    from controller.inputs import read_inputs

    os.chdir(ROOT)
    with Storm(directory, seed, in_process) as storm:
        for fault in schedule(kinds, iterations, seed):
            storm.wait_for(fault)
            wound = storm.strike(fault)
            print(f"iteration {storm.iteration():>3}: {KINDS[fault.kind]} {wound.what}", flush=True)
        storm.finish(iterations)
        config = load_config(storm.run / "config.yaml", [])
        wrong = complaints(storm.run, config, read_inputs(config).prompts, {"judge": "answer"}, iterations)
        table = report.markdown(report.rows(storm))
        missing = missing_by_reason(storm.run)
    text = f"{table}\n\nscores missing, by reason: {missing}\n"
    text += "\n".join(f"WRONG: {complaint}" for complaint in wrong) if wrong else "nothing is wrong with the records"
    print(text)
    report.write(directory / "chaos.md", text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
