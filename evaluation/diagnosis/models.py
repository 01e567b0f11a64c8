"""Load the models of a run one at a time, and measure gradients and Δlogp."""

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
    """Model of the run to measure."""

    name: str
    """Model name, as in "at NAME"."""
    path: Path
    iterations: tuple[int, ...]
    """Iterations of the replies to measure with, nearest first."""
    version: int
    """Weight version: 0 at the start, incremented per iteration."""
    gradients: bool = True


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Measurements from the models."""

    measured: list[ChannelGradients] = field(default_factory=list)
    shifts: list[LogprobShift] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    """Sentences on the weights that sampled the replies."""
    lacks: list[str] = field(default_factory=list)
    """Sentences on missing inputs."""


def choose_checkpoints(run: RunFiles, wanted: str | None) -> list[CheckpointChoice]:
    """Return the start model, and a later one if a checkpoint exists. Δlogp needs both.

    wanted: model to measure gradients at: start, last or a checkpoint's iteration. None: the start and the last
    checkpoint. Raises InputError for other values.
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
            f"--checkpoint: {wanted!r} is not allowed; use start, last, or the iteration of a checkpoint in "
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
    """Measure gradients at the chosen models, and Δlogp of the second against the first.

    limit: maximum replies and maximum demonstrations per loss. Missing inputs are reported in `Findings.lacks`.
    """
    found = Findings()
    if len(choices) == 1:
        found.lacks.append(f"{run.directory / 'checkpoints'} contains no checkpoint to compare the start with.")
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
        del scorer  # free memory before loading the next one
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
    """Load a checkpoint as the learner's policy model, on a GPU if available."""
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
    """Report the weight versions of the replies, and the gap between recomputed and sampler log-probabilities."""
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
            f"At {choice.name}: {others} of {len(items)} replies were sampled by neighbouring weights (versions "
            f"{versions[0]} to {versions[-1]}, not {choice.version}), which no importance ratio corrects here."
        )
    return sentences
