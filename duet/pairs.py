"""`duet pairs`: preference pairs from scored replies, for DPO from a file (method §5).

    duet pairs RUN --out pairs.parquet            the replies that a run recorded
    duet pairs --scored FILE.jsonl --config CONFIG --out pairs.parquet      replies scored elsewhere
    (data.scored_replies)

Of each group of replies the best and the worst are a pair, or there is none: `data.pairing` decides. In a run, a
prompt that came up in several iterations gives a pair in each. Only replies that ended by themselves and are
well-formed take part. A run is read as far as it has come; nothing else of it is needed than its replies, and
`model` and `data.prompts` of its configuration.
"""

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError
from configs.load import load_yaml
from configs.validate import check_path, check_sources, data_paths, source_name
from data.dataset import DatasetIndex
from data.open_dataset import open_prompts
from data.pairing import PairRefusal, pick_best
from data.records import PAIRS
from data.scored_replies import SCORES, ReplyScores, read_run, read_scored, select_iterations
from observability.run_directory import run_directory
from speech.families import Family, family
from speech.types import PreferencePair, Prompt
from speech.vocabulary import Vocabulary


@dataclass(kw_only=True)
class PairCounts:
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
class PairSources:
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
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        help="with --scored: the configuration that names model and prompts; given several times, each changes those "
        "before it",
    )
    parser.add_argument("--out", type=Path, required=True, help="Parquet, or JSONL when the name ends in .jsonl")
    parser.add_argument("--iterations", metavar="A-B", help="of the run; default: all that it has")
    parser.add_argument("--margin", type=float, default=0.5, help="smallest gap of the scores (default: %(default)s)")
    parser.add_argument("--score", default="total", help="the score that decides (default: %(default)s)")
    parser.add_argument(
        "--ties",
        metavar="A,B",
        help="scores that decide among equals, in order (default: the raters of reward.weights; semantic,acoustic with "
        "--scored)",
    )


def run(options: argparse.Namespace) -> None:
    """Writes the pairs and prints what came of it. Raises InputError, and writes nothing, when there are none."""
    _check(options)
    if options.run is not None:
        directory = run_directory(options.run)
        numbers = select_iterations(directory, options.iterations)
        material = read_material(directory / "config.yaml")
        groups = read_run(directory, numbers, material.prompts, material.source, options.score)
        source = f"{directory}, iterations {numbers[0]} to {numbers[-1]}"
        usual = list(material.raters)
    else:
        material = read_material(options.config)
        groups = read_scored(options.scored, material.family, material.vocabulary, material.prompts, options.score)
        source, usual = str(options.scored), list(SCORES)
    ties = usual if options.ties is None else [name for name in options.ties.split(",") if name]
    tally = PairCounts()
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


def pair_up(
    groups: Iterable[ReplyScores], ties: Sequence[str], margin: float, tally: PairCounts
) -> Iterator[PreferencePair]:
    """A pair for each prompt that has one. Counts everything else in `tally`."""
    for group in groups:
        tally.prompts += 1
        tally.names |= group.names
        tally.unfit.update(group.unfit)
        tally.unfit["without a score"] += sum(candidate.score is None for candidate in group.candidates)
        picked = pick_best(group.candidates, ties, margin)
        if isinstance(picked, PairRefusal):
            tally.dropped[str(picked)] += 1
            continue
        best, worst = (group.candidates[index] for index in picked)
        assert best.score is not None
        assert worst.score is not None
        tally.gaps.append(best.score - worst.score)
        yield PreferencePair(
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


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Writes `PAIRS` as Parquet, or as JSONL when the name ends in .jsonl; `speech.types.read_pairs` reads both.

    The file is whole or not there: it is written aside, flushed to the disk and renamed.
    """
    rows = [{name: _plain(value) for name, value in asdict(pair).items()} for pair in pairs]
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
            else:
                pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise InputError(f"--out: {path} cannot be written: {error}") from error


def read_material(paths: Path | Sequence[Path]) -> PairSources:
    """What a configuration says about tokens and prompts.

    Only these keys are read, so that the records of a run stay readable when other keys of the configuration have
    changed since. Raises InputError naming the file and the key.
    """
    config = load_yaml(paths)
    path = paths if isinstance(paths, Path) else ", ".join(map(str, paths))
    try:
        checkpoint, name, data = (
            OmegaConf.select(config, key) for key in ("model.path", "model.family", "data.prompts")
        )
        weights = OmegaConf.select(config, "reward.weights")
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    for key, value in (("model.path", checkpoint), ("model.family", name), ("data.prompts", data)):
        if not isinstance(value, str) and not (key == "data.prompts" and OmegaConf.is_list(value)):
            raise InputError(f"{path}: {key} is missing; it says how the replies' tokens are to be read")
    data = OmegaConf.to_container(data) if OmegaConf.is_list(data) else data
    check_sources("data.prompts", data, check_path)
    chosen = family(name)
    vocabulary = Vocabulary.from_checkpoint(Path(checkpoint), chosen.tokens)
    return PairSources(
        family=chosen,
        vocabulary=vocabulary,
        prompts=DatasetIndex(open_prompts(data_paths(data), vocabulary), "id"),
        source=source_name(data),
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
    if not 0 <= options.margin < math.inf:
        raise InputError(f"--margin: {options.margin} is not possible; at least 0, and finite")
    try:
        if options.out.is_dir():
            raise InputError(f"--out: {options.out} is a directory; the name of a file was expected")
    except OSError as error:
        raise InputError(f"--out: {options.out} cannot be written: {error}") from error


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items()) if count) or "none"
