"""How much memory a large set of prompts takes: synthetic rows are written, opened, picked in random order and scanned.

    python -m tests.data.prepare.memory 1000000

Each measurement is a process of its own. What is said is the growth of its peak resident memory over what it had before
it opened the data, with everything imported.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.dialogues import scan_dialogues
from data.manifest import NAME, Manifest, ManifestEntry, PreparedFolder, fingerprint_of
from data.open_dataset import open_prompts
from data.records import PROMPTS as SCHEMA
from data.records import read_prompts, scan_prompts
from data.sampler import PROMPTS, EpochSampler
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[3]
PART = 4096
"""Rows of a file, as `duet prepare` has them."""
TOKENS = (60, 120)
"""Of a prompt, at least and at most."""
WAYS = ("walk", "prepared", "scan", "dialogues", "hold", "hold dialogues")
"""Open and pick rows in random order; the same with a manifest; scan all rows as `duet doctor` does; scan dialogues as
`duet prepare` does; hold all rows of the one or the other, as a list, for comparison."""


def write(folder: Path, rows: int, vocabulary: Vocabulary, lines: int | None = None) -> None:
    """folder/prompts/*.parquet with random ids in row groups of 256, and lines in folder/talks.jsonl; None: as many."""
    generator = np.random.default_rng(0)
    (folder / "prompts").mkdir(parents=True)
    for begin in range(0, rows, PART):
        count = min(PART, rows - begin)
        offsets = np.concatenate([[0], np.cumsum(generator.integers(*TOKENS, count))]).astype(np.int32)
        facts = pa.MapArray.from_arrays(np.arange(count + 1, dtype=np.int32), ["answer"] * count, ["seven"] * count)
        columns = [
            pa.array([f"row-{number:010d}" for number in range(begin, begin + count)]),
            pa.ListArray.from_arrays(offsets, generator.integers(0, vocabulary.size, offsets[-1], dtype=np.int32)),
            pa.array(["two plus five"] * count),
            facts,
        ]
        table = pa.Table.from_arrays(columns, schema=SCHEMA)
        pq.write_table(table, folder / f"prompts/part-{begin // PART:06d}.parquet", row_group_size=256)
    one = {"messages": [{"role": "user", "content": "<|audio|>"}], "audios": ["a.wav"], "sft_target_text": "seven"}
    line = json.dumps(one | {"question_text": "two plus five"}) + "\n"
    with (folder / "talks.jsonl").open("w") as file:
        for _ in range(rows if lines is None else lines):
            file.write(line)


def measure(way: str, folder: Path, picks: int) -> dict[str, float]:
    """Does it in this process. Returns the rows seen, growth in MiB, and seconds."""
    vocabulary = _vocabulary()
    for _ in scan_prompts(ROOT / "playground/world/data/held_out.parquet", vocabulary):
        pass  # whatever the libraries set up when they are first used
    before, begun, seen = _peak(), time.perf_counter(), 0
    opened = 0.0
    if way in ("walk", "prepared"):
        if way == "walk":
            (folder / NAME).unlink(missing_ok=True)
        shards = open_prompts([folder / "prompts"], vocabulary)
        opened = time.perf_counter() - begun
        order = EpochSampler(len(shards), 0, PROMPTS)
        for index in order.take(picks):
            assert shards[index].id == f"row-{index:010d}"
            seen += 1
    elif way == "hold":
        seen = len(read_prompts(folder / "prompts", vocabulary))
    elif way == "hold dialogues":
        seen = len(list(scan_dialogues(folder / "talks.jsonl")))
    else:
        found = (
            scan_prompts(folder / "prompts", vocabulary) if way == "scan" else scan_dialogues(folder / "talks.jsonl")
        )
        for _, row in found:
            assert not isinstance(row, Exception)
            seen += 1
    seconds = time.perf_counter() - begun
    return {"rows": seen, "mib": _peak() - before, "seconds": seconds, "opened": opened}


def describe(folder: Path) -> None:
    """Writes the manifest that `duet prepare` would write."""
    vocabulary = _vocabulary()
    found = open_prompts([folder / "prompts"], vocabulary)
    parts = [ManifestEntry(name=file.name, rows=rows, bytes=file.stat().st_size) for file, rows in found.file_rows()]
    prompts = PreparedFolder(rows=len(found), mark=found.marks[0], longest=found.longest, parts=parts)
    Manifest(
        inputs="",
        recordings="",
        family="playground",
        codec="",
        tokenizer=fingerprint_of(vocabulary),
        rows=len(found),
        refused={},
        folders={"prompts": prompts},
    ).write(folder)


def measured(way: str, folder: Path, picks: int, seconds: float = 3000) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "tests.data.prepare.memory", "--way", way, "--folder", str(folder), str(picks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _vocabulary() -> Vocabulary:
    return Vocabulary.from_checkpoint(ROOT / "playground/world/base", PLAYGROUND.tokens)


def _peak() -> float:
    """MiB. On Linux not by getrusage, whose peak is also that of the process which started this one."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, help="rows to write; with --way, rows to pick")
    parser.add_argument("--way", choices=WAYS, help="measure this alone, of what is in --folder")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.folder, options.rows)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, options.rows, _vocabulary())
        size = sum(file.stat().st_size for file in folder.rglob("*.parquet")) / 2**20
        print(f"{options.rows:,} rows, {size:,.0f} MiB of Parquet")
        for way in WAYS:
            if way == "prepared":
                describe(folder)
            found = measured(way, folder, min(options.rows, 5_000))
            print(
                f"{way:<15} {found['rows']:>10,.0f} rows {found['mib']:>8,.0f} MiB {found['seconds']:>7.1f} s"
                + (f", of which {found['opened']:.1f} s to open" if found["opened"] else "")
            )


if __name__ == "__main__":
    main()
