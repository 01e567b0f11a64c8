"""`duet pairs`: preference pairs from scored replies, for DPO from a file (method §5).

    duet pairs RUN --out pairs.parquet            the replies that a run recorded
    duet pairs --scored FILE.jsonl --config CONFIG --out pairs.parquet      replies scored elsewhere (controller.scored)

Of each group of replies the best and the worst are a pair, or there is none: `controller.pairing` decides. In a run, a
prompt that came up in several iterations gives a pair in each. Only replies that ended by themselves and are
well-formed take part. A run is read as far as it has come; nothing else of it is needed than its replies, and
`model` and `data.prompts` of its configuration.
"""

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from controller.pairing import Candidate, Refusal, pick
from controller.records import run_directory
from controller.scored import SCORES, Scored, read_scored
from speech.errors import InputError
from speech.families import Family, family
from speech.records import PAIRS, Finish, Pair, Prompt, read_prompts
from speech.vocabulary import Vocabulary

COLUMNS = ("prompt_id", "index", "finish", "defect", "token_ids", "total", "scores", "missing")
"""What is read of a run's replies; other columns may come and go."""


@dataclass(kw_only=True)
class Tally:
    """What became of the prompts and their replies."""

    prompts: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Prompts without a pair, by reason."""
    unfit: Counter[str] = field(default_factory=Counter)
    """Replies that could not be in a pair, by reason."""
    gaps: list[float] = field(default_factory=list)
    names: set[str] = field(default_factory=lambda: {"total"})
    """Scores that some reply has or should have."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a configuration says about the replies' tokens."""

    family: Family
    vocabulary: Vocabulary
    prompts: Mapping[str, Prompt]
    """The training data, by id."""
    source: str
    """Its file."""
    raters: Sequence[str]
    """Those of the total score, most important as configured first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duet pairs`."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="directory of a run, or its name under runs/")
    parser.add_argument("--scored", type=Path, metavar="FILE", help="scored replies in the form of WavAlign's release")
    parser.add_argument("--config", type=Path, help="with --scored: the configuration that names model and prompts")
    parser.add_argument("--out", type=Path, required=True, help="Parquet, or JSONL when the name ends in .jsonl")
    parser.add_argument("--iterations", metavar="A-B", help="of the run; default: all that it has")
    parser.add_argument("--margin", type=float, default=0.5, help="smallest gap of the scores (default: %(default)s)")
    parser.add_argument("--score", default="total", help="the score that decides (default: %(default)s)")
    parser.add_argument(
        "--ties",
        metavar="A,B",
        help="scores that decide among equals, in order (default: the raters of reward.total; semantic,acoustic with "
        "--scored)",
    )


def run(options: argparse.Namespace) -> None:
    """Writes the pairs and prints what came of it. Raises InputError, and writes nothing, when there are none."""
    _check(options)
    if options.run is not None:
        directory = run_directory(options.run)
        numbers = _numbers(directory, options.iterations)
        material = read_material(directory / "config.yaml")
        groups = read_run(directory, numbers, material, options.score)
        source = f"{directory}, iterations {numbers[0]} to {numbers[-1]}"
        usual = list(material.raters)
    else:
        material = read_material(options.config)
        groups = read_scored(options.scored, material.family, material.vocabulary, material.prompts, options.score)
        source, usual = str(options.scored), list(SCORES)
    ties = usual if options.ties is None else [name for name in options.ties.split(",") if name]
    tally = Tally()
    pairs = list(pair_up(groups, ties, options.margin, tally))
    for key, name in (("--score", options.score), *(("--ties", name) for name in ties)):
        if name not in tally.names:
            raise InputError(
                f"{key}: no reply of {source} has the score {name!r}; scores: {', '.join(sorted(tally.names))}"
            )
    if not pairs:
        raise InputError(f"{source}: no pair among {tally.prompts} prompts; {_counts(tally.dropped)}")
    write_pairs(options.out, pairs)
    print(f"{source}: {tally.prompts} prompts seen, {len(pairs)} pairs written to {options.out}")
    print(f"prompts dropped   {_counts(tally.dropped)}")
    print(f"replies left out  {_counts(tally.unfit)}")
    print(f"mean gap          {np.mean(tally.gaps):.3f} in {options.score}")


def pair_up(groups: Iterable[Scored], ties: Sequence[str], margin: float, tally: Tally) -> Iterator[Pair]:
    """A pair for each prompt that has one. Counts everything else in `tally`."""
    for group in groups:
        tally.prompts += 1
        tally.names |= group.names
        tally.unfit.update(group.unfit)
        tally.unfit["without a score"] += sum(candidate.score is None for candidate in group.candidates)
        picked = pick(group.candidates, ties, margin)
        if isinstance(picked, Refusal):
            tally.dropped[str(picked)] += 1
            continue
        best, worst = (group.candidates[index] for index in picked)
        assert best.score is not None
        assert worst.score is not None
        tally.gaps.append(best.score - worst.score)
        yield Pair(
            prompt_id=group.prompt_id,
            prompt_ids=group.prompt_ids,
            chosen_ids=best.ids,
            rejected_ids=worst.ids,
            chosen_score=best.score,
            rejected_score=worst.score,
            scores_chosen=dict(best.scores),
            scores_rejected=dict(worst.scores),
            origin=f"{group.origin} {best.label},{worst.label}",
        )


def read_run(directory: Path, iterations: Sequence[int], material: Material, score: str) -> Iterator[Scored]:
    """The recorded replies of a run, a prompt of an iteration at a time, in their recorded order."""
    paths = _replies(directory)
    for iteration in iterations:
        path = paths[iteration]
        groups: dict[str, list[dict]] = {}
        for row in _rows(path):
            groups.setdefault(row["prompt_id"], []).append(row)
        for prompt_id, rows in groups.items():
            if prompt_id not in material.prompts:
                raise InputError(
                    f"{path} has replies to the prompt {prompt_id!r}, which {material.source} does not have; "
                    "data.prompts must be the file that the run was trained with"
                )
            unfit = Counter(reason for row in rows if (reason := _unfit(row)))
            yield Scored(
                prompt_id=prompt_id,
                prompt_ids=material.prompts[prompt_id].token_ids,
                origin=f"run {directory.resolve().name} iteration {iteration} replies",
                candidates=[_candidate(row, score) for row in rows if not _unfit(row)],
                unfit=unfit,
                names=frozenset(name for row in rows for name in [*dict(row["scores"]), *dict(row["missing"])]),
            )


def write_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Writes `PAIRS` as Parquet, or as JSONL when the name ends in .jsonl; `speech.records.read_pairs` reads both.

    The file is whole or not there: it is written aside, flushed to the disk and renamed.
    """
    rows = [{name: _plain(value) for name, value in asdict(pair).items()} for pair in pairs]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    with aside.open("wb") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_material(path: Path) -> Material:
    """What a configuration says about tokens and prompts.

    Only these keys are read, so that the records of a run stay readable when other keys of the configuration have
    changed since. Raises InputError naming the file and the key.
    """
    if not path.is_file():
        raise InputError(f"configuration file {path} does not exist")
    try:
        config = OmegaConf.load(path)
        checkpoint, name, data = (
            OmegaConf.select(config, key) for key in ("model.checkpoint", "model.family", "data.prompts")
        )
        weights = OmegaConf.select(config, "reward.total")
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # YAML errors come in many classes
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    for key, value in (("model.checkpoint", checkpoint), ("model.family", name), ("data.prompts", data)):
        if not isinstance(value, str):
            raise InputError(f"{path}: {key} is missing; it says how the replies' tokens are to be read")
    chosen = family(name)
    vocabulary = Vocabulary.from_checkpoint(Path(checkpoint), chosen.tokens)
    return Material(
        family=chosen,
        vocabulary=vocabulary,
        prompts={prompt.id: prompt for prompt in read_prompts(Path(data), vocabulary)},
        source=data,
        raters=[str(rater) for rater in weights] if OmegaConf.is_dict(weights) else [],
    )


def _check(options: argparse.Namespace) -> None:
    if (options.run is None) == (options.scored is None):
        raise InputError("duet pairs takes either the directory of a run or --scored FILE")
    if options.scored is not None and options.config is None:
        raise InputError("--scored needs --config, the configuration that names the model and its prompts")
    if options.run is not None and options.config is not None:
        raise InputError("--config goes with --scored; a run has its own configuration")
    if options.scored is not None and options.iterations is not None:
        raise InputError("--iterations goes with a run; a scored file has none")
    if not options.margin >= 0:
        raise InputError(f"--margin: {options.margin} is not possible; at least 0")
    if options.out.is_dir():
        raise InputError(f"--out: {options.out} is a directory; the name of a file was expected")


def _replies(directory: Path) -> dict[int, Path]:
    found = (directory / "replies").glob("*.parquet")
    return dict(sorted((int(path.stem), path) for path in found if path.stem.isdigit()))


def _numbers(directory: Path, wanted: str | None) -> list[int]:
    """The recorded iterations that are wanted, at least one."""
    recorded = list(_replies(directory))
    if not recorded:
        raise InputError(f"{directory / 'replies'} has no replies (yet)")
    if wanted is None:
        return recorded
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", wanted)
    if not match:
        raise InputError(f"--iterations: {wanted!r} is not a number or a range such as 1-40")
    first, last = int(match[1]), int(match[2] or match[1])
    chosen = [number for number in recorded if first <= number <= last]
    if not chosen:
        raise InputError(
            f"--iterations: {directory} has replies of the iterations {recorded[0]} to {recorded[-1]}, none in {wanted}"
        )
    return chosen


def _rows(path: Path) -> list[dict]:
    try:
        # partitioning=None: a "key=value" in the path of the run is no column.
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file: {error}") from error
    for name in COLUMNS:
        if name not in table.column_names:
            raise InputError(f"{path} has no column {name!r}; expected {', '.join(COLUMNS)}")
    return table.select(list(COLUMNS)).to_pylist()


def _unfit(row: dict) -> str | None:
    if row["finish"] != Finish.STOP:
        return "not finished"
    return None if row["defect"] is None else "malformed"


def _candidate(row: dict, score: str) -> Candidate:
    scores = {name: number for name, number in [*row["scores"], ("total", row["total"])] if number is not None}
    return Candidate(
        label=str(row["index"]),
        ids=np.asarray(row["token_ids"], dtype=np.int32),
        score=scores.get(score),
        scores=scores,
    )


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items()) if count) or "none"
