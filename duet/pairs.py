"""`duet pairs`: preference pairs from scored replies, for DPO from a file (method §5)."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
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

app = typer.Typer()


@dataclass(kw_only=True)
class PairCounts:
    """Counts of the prompts and replies that were read."""

    num_prompts: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Prompts without a pair, by reason."""
    unfit: Counter[str] = field(default_factory=Counter)
    """Replies that a pair cannot use, by reason."""
    gaps: list[float] = field(default_factory=list)
    names: set[str] = field(default_factory=lambda: {"total"})
    """Names of the scores of the replies, missing scores included."""


@dataclass(frozen=True, kw_only=True)
class PairSources:
    """The parts of a configuration that say how to read the replies' tokens."""

    family: Family
    vocabulary: Vocabulary
    prompts: Mapping[str, Prompt]
    """Training prompts by id."""
    source: str
    """File of the prompts."""
    raters: Sequence[str]
    """Raters of the total score, in the configured order."""


@app.command()
def pairs(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="directory of a run, or its name under runs/")
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Parquet file to write, or JSONL if the name ends in .jsonl")
    ],
    scored: Annotated[
        Path | None, typer.Option(metavar="FILE", help="scored replies in the format of WavAlign's release")
    ] = None,
    config: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            default_factory=list,
            show_default=False,
            help="with --scored: YAML file that names the model and the prompts; later files change earlier ones",
        ),
    ],
    iterations: Annotated[
        str | None, typer.Option(metavar="A-B", help="iterations of the run to read", show_default="all")
    ] = None,
    margin: Annotated[float, typer.Option(min=0.0, max=1e9, help="smallest gap between the two scores")] = 0.5,
    score: Annotated[str, typer.Option(help="score that ranks the replies")] = "total",
    ties: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="scores that break ties, in this order",
            show_default="raters of reward.weights; semantic,acoustic with --scored",
        ),
    ] = None,
) -> None:
    """Build preference pairs from scored replies.

    The best and the worst reply of a group are a pair if their scores differ enough. A prompt that occurs in several
    iterations gives one pair per iteration. Only well-formed replies that ended by themselves take part.

    The run may still be in progress. Of its files only the replies and `model` and `data.prompts` of its
    configuration are read.

        duet pairs RUN --out pairs.parquet
        duet pairs --scored FILE.jsonl --config CONFIG --out pairs.parquet
    """
    _check(run, scored, config, iterations, out)
    if run is not None:
        directory = run_directory(run)
        numbers = select_iterations(directory, iterations)
        sources = read_pair_sources(directory / "config.yaml")
        groups = read_run(directory, numbers, sources.prompts, sources.source, score)
        source = f"{directory}, iterations {numbers[0]} to {numbers[-1]}"
        tie_breakers = list(sources.raters)
    else:
        assert scored is not None
        sources = read_pair_sources(config)
        groups = read_scored(scored, sources.family, sources.vocabulary, sources.prompts, score)
        source, tie_breakers = str(scored), list(SCORES)
    if ties is not None:
        tie_breakers = [name for name in ties.split(",") if name]
    counts = PairCounts()
    found = list(pair_up(groups, tie_breakers, margin, counts))
    for key, name in (("--score", score), *(("--ties", name) for name in tie_breakers)):
        if name not in counts.names:
            raise InputError(
                f"{key}: no reply of {source} has the score {name!r}; scores: {', '.join(sorted(counts.names))}"
            )
    if not found:
        raise InputError(f"{source}: no pair among {counts.num_prompts} prompts; {_format_counts(counts.dropped)}")
    write_pairs(out, found)
    print(f"{source}: {counts.num_prompts} prompts read, {len(found)} pairs written to {out}")
    print(f"prompts dropped   {_format_counts(counts.dropped)}")
    print(f"replies left out  {_format_counts(counts.unfit)}")
    print(f"mean gap          {np.mean(counts.gaps):.3f} in {score}")


def pair_up(
    groups: Iterable[ReplyScores], ties: Sequence[str], margin: float, counts: PairCounts
) -> Iterator[PreferencePair]:
    """Yield a pair for each prompt that has one, and count the rest in `counts`."""
    for group in groups:
        counts.num_prompts += 1
        counts.names |= group.names
        counts.unfit.update(group.unfit)
        counts.unfit["without a score"] += sum(candidate.score is None for candidate in group.candidates)
        picked = pick_best(group.candidates, ties, margin)
        if isinstance(picked, PairRefusal):
            counts.dropped[str(picked)] += 1
            continue
        best, worst = (group.candidates[index] for index in picked)
        assert best.score is not None
        assert worst.score is not None
        counts.gaps.append(best.score - worst.score)
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
    """Write pairs in the schema `PAIRS` as Parquet, or as JSONL if the name ends in .jsonl.

    The write is atomic: the file is written beside its place, flushed to disk and renamed. `data.records.read_pairs`
    reads both formats.
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


def read_pair_sources(paths: Path | list[Path]) -> PairSources:
    """Read the model, the prompts and the raters that a configuration names.

    Other keys are ignored, so the records of an older run stay readable. Raises InputError that names the file and
    the key.
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
            raise InputError(f"{path}: {key} is missing; set it, because it says how to read the replies' tokens")
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


def _check(run: Path | None, scored: Path | None, config: list[Path], iterations: str | None, out: Path) -> None:
    """Raise InputError for options that do not go together."""
    if (run is None) == (scored is None):
        raise InputError("duet pairs takes either the directory of a run or --scored FILE; give one of them")
    if scored is not None and not config:
        raise InputError("--scored needs --config, the configuration that names the model and its prompts")
    if run is not None and config:
        raise InputError("--config goes with --scored; a run has its own configuration")
    if scored is not None and iterations is not None:
        raise InputError("--iterations goes with a run; a scored file has none")
    try:
        if out.is_dir():
            raise InputError(f"--out: {out} is a directory; name a file")
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error}") from error


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _format_counts(counter: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counter.items()) if count) or "none"
