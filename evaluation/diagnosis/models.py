"""The models of a run, one at a time in memory, and everything that has to be asked of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from common.errors import InputError
from evaluation.diagnosis.gradient_geometry import log_probabilities
from evaluation.diagnosis.gradients import ChannelGradients, measure_anchor, measure_preference
from evaluation.diagnosis.logprob_shift import LogprobShift, shifts
from evaluation.diagnosis.run_data import DiagnosisItem, RunFiles, describe_run
from learner.policy import PolicyModel
from speech.checkpoint import check_checkpoint
from speech.families import Family
from speech.modeling import load_pretrained

START = "the start"


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """A model of the run to look at."""

    name: str
    """In words that follow "at"."""
    path: Path
    iterations: tuple[int, ...]
    """Iterations whose replies it is looked at with, the nearest first."""
    version: int
    """Weight version: 0 at the start, one more an iteration."""
    gradients: bool = True


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the models gave."""

    measured: list[ChannelGradients] = field(default_factory=list)
    shifts: list[LogprobShift] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    """Sentences on what the replies are to the models."""
    lacks: list[str] = field(default_factory=list)
    """Sentences on what was not there."""


def choose_checkpoints(run: RunFiles, wanted: str | None) -> list[CheckpointChoice]:
    """The start model, and a later one when there is a checkpoint: Δlogp needs both.

    wanted: where to measure gradients: start, last or a checkpoint's iteration; None for the start and the last
    checkpoint. Raises InputError for what is neither.
    """
    start = CheckpointChoice(
        name=START,
        path=Path(run.config.model.path),
        iterations=tuple(run.iterations),
        version=0,
        gradients=wanted in (None, "start"),
    )
    present = ", ".join(map(str, run.checkpoints)) or "none"
    if wanted not in (None, "start", "last") and not (wanted.isdigit() and int(wanted) in run.checkpoints):
        raise InputError(
            f"--checkpoint: {wanted!r} is not possible; allowed: start, last, or the iteration of a checkpoint in "
            f"{run.directory / 'checkpoints'} ({present})"
        )
    if not run.checkpoints:
        return [start]
    number = int(wanted) if wanted is not None and wanted.isdigit() else max(run.checkpoints)
    later = CheckpointChoice(
        name=f"iteration {number}",
        path=run.checkpoints[number],
        iterations=tuple(reversed([n for n in run.iterations if n <= number])),
        version=number,
        gradients=wanted != "start",
    )
    return [start, later]


def ask_models(run: RunFiles, choices: Sequence[CheckpointChoice], limit: int) -> Findings:
    """Gradients at every model that wants them, and Δlogp of the second against the first.

    limit: replies, and demonstrations, that each loss is taken over. What is not there is said in the findings.
    """
    found = Findings()
    if len(choices) == 1:
        found.lacks.append(f"{run.directory / 'checkpoints'} holds no checkpoint to compare the start with.")
    try:
        demonstrations = run.demonstrations(limit)
    except InputError as error:
        found.lacks.append(f"No demonstrations: {error}.")
        demonstrations = []
    samples: list[list[DiagnosisItem]] = []
    for choice in choices:
        try:
            samples.append(run.replies(choice.iterations, limit))
            if not samples[-1]:
                found.lacks.append(f"No replies to measure at {choice.name}: the run has sampled none.")
        except InputError as error:
            found.lacks.append(f"No replies to measure at {choice.name}: {error}.")
            samples.append([])
    materials = {describe_run(items): items for items in (demonstrations, *samples) if items}
    scored: list[dict[str, list[np.ndarray]]] = []
    model = run.config.model
    for choice, items in zip(choices, samples, strict=True):
        try:
            scorer = load(choice.path, run.family, model.dtype, run.kinds, trust_remote_code=model.trust_remote_code)
        except InputError as error:
            found.lacks.append(f"No model at {choice.name}: {error}.")
            continue
        logps = {name: log_probabilities(scorer, [i.passage for i in part]) for name, part in materials.items()}
        scored.append(logps)
        if choice.gradients:
            found.measured.extend(_gradients(run, choice, scorer, items, demonstrations))
            if items:
                found.checks.extend(_compare(choice, items, logps[describe_run(items)]))
        del scorer  # before the next one comes into memory
    if len(scored) == 2:
        before, after = scored
        for name, part in materials.items():
            found.shifts.extend(shifts(name, part, before[name], after[name], run.kinds))
    return found


def _gradients(
    run: RunFiles,
    choice: CheckpointChoice,
    scorer: PolicyModel,
    items: Sequence[DiagnosisItem],
    demonstrations: Sequence[DiagnosisItem],
) -> list[ChannelGradients]:
    boundary, anchor = run.config.algorithm.boundary_channel, run.config.anchor
    measured = []
    if items:
        measured.append(measure_preference(choice.name, scorer, items, boundary))
    if demonstrations:
        by_channel = {"text": anchor.text_weight, "speech": anchor.speech_weight}
        measured.append(measure_anchor(choice.name, scorer, demonstrations, boundary, by_channel))
    return measured


def load(path: Path, chosen: Family, dtype: str, kinds: np.ndarray, *, trust_remote_code: bool = False) -> PolicyModel:
    """A checkpoint as the learner scores with it, on a GPU where there is one."""
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is not a checkpoint: it has no config.json")
    check_checkpoint(path, trust_remote_code=trust_remote_code)
    from transformers.utils import logging  # slow to import

    logging.disable_progress_bar()
    try:
        model = load_pretrained(path, chosen, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be loaded as a model: {' '.join(str(error).split())}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return PolicyModel(model, torch.from_numpy(kinds)).to(device).eval()


def _compare(choice: CheckpointChoice, items: Sequence[DiagnosisItem], logps: Sequence[np.ndarray]) -> list[str]:
    """Whose samples these are, and whether they score as the sampler reported: the scoring is then the sampler's."""
    own = [index for index, item in enumerate(items) if item.weight_version == choice.version]
    others = len(items) - len(own)
    reported = {i: known for i in own if (known := items[i].logps) is not None and not np.isnan(known).all()}
    gaps = [float(np.nanmax(np.abs(logps[i] - known))) for i, known in reported.items()]
    sentences = []
    if gaps:
        sentences.append(
            f"At {choice.name}: scored again, the {len(gaps)} replies that its own weights sampled are within "
            f"{max(gaps):.1g} nats a token of what the sampler reported."
        )
    if others:
        versions = sorted({v for item in items if (v := item.weight_version) not in (None, choice.version)})
        sentences.append(
            f"At {choice.name}: {others} of {len(items)} replies were sampled by neighbouring weights (of versions "
            f"{versions[0]} to {versions[-1]}, not {choice.version}), which no importance ratio corrects here."
        )
    return sentences
