"""Whether a run that was hurt is whole: read from its records alone."""

from collections import Counter
from pathlib import Path

from configs.schema import Config
from data.sampler import PROMPTS, EpochSampler
from observability.run_directory import read_iterations, read_replies
from speech.types import Prompt


def complaints(directory: Path, config: Config, prompts: list[Prompt], honest: dict[str, str], least: int) -> list[str]:
    """What is wrong with a finished run; nothing when it is whole.

    prompts: as the run read them. honest: raters that must say the same whenever both give a score, a judge's name and
    the name of the local rater whose work it does. least: iterations that it must have done.
    """
    return [
        *_series(directory, config, least),
        *_ledger(directory, config, prompts),
        *_scores(directory, config, honest),
    ]


def _series(directory: Path, config: Config, least: int) -> list[str]:
    """Every iteration and weight version in order, λ without a gap and equal to its own recurrence."""
    rows = read_iterations(directory).to_pylist()
    found = []
    numbers, versions = [row["iteration"] for row in rows], [row["weight_version"] for row in rows]
    if len(rows) < least or numbers != list(range(1, len(rows) + 1)):
        found.append(f"iterations on record: {numbers}")
    if versions != list(range(len(rows))):
        found.append(f"weight versions on record: {versions}")
    before: float | None = config.mix_ratio.initial
    for row in rows:
        raw, mix = row["lambda_raw"], row["lambda"]
        if raw is not None:
            before = (
                raw if before is None else (1 - config.mix_ratio.ema_decay) * raw + config.mix_ratio.ema_decay * before
            )
        if mix is None or abs(mix - (before or 0.0)) > 1e-9:
            found.append(f"λ of iteration {row['iteration']} is {mix}, its moving average {before}")
    return found


def _ledger(directory: Path, config: Config, prompts: list[Prompt]) -> list[str]:
    """Every prompt that was due, in its iteration and no other, with its whole group."""
    ledger, found = EpochSampler(len(prompts), config.run.seed, PROMPTS), []
    group = list(range(config.rollout.n))
    for iteration in _iterations(directory):
        due = [prompts[index].id for index in ledger.take(config.rollout.batch_size)]
        rows = read_replies(directory, iteration).to_pylist()
        done: dict[str, list[int]] = {}
        for row in rows:
            done.setdefault(row["prompt_id"], []).append(row["index"])
        if sorted(done) != sorted(due):
            found.append(f"iteration {iteration}: prompts {sorted(set(due) ^ set(done))} too many or too few")
        found += [
            f"iteration {iteration}: replies {indices} to {name}"
            for name, indices in done.items()
            if sorted(indices) != group
        ]
        wrong = {row["weight_version"] for row in rows} - {iteration - 1}
        if wrong:
            found.append(f"iteration {iteration}: replies of weight versions {sorted(wrong)}")
    return found


def _scores(directory: Path, config: Config, honest: dict[str, str]) -> list[str]:
    """No score that nobody gave: on the scale, what the honest rater says, and Missing with a reason otherwise."""
    raters, found = [rater.name for rater in config.reward.functions], []
    for iteration in _iterations(directory):
        for row in read_replies(directory, iteration).to_pylist():
            place = f"iteration {iteration}, {row['prompt_id']} reply {row['index']}"
            scores, missing = dict(row["scores"]), dict(row["missing"])
            for name in raters:
                if (name in scores) == (name in missing):
                    found.append(f"{place}: {name} must give a score or a reason, not {scores.get(name)}")
                elif name in scores and not config.reward.score_min <= scores[name] <= config.reward.score_max:
                    found.append(f"{place}: {name} gave {scores[name]}")
            for judge, local in honest.items():
                if judge in scores and local in scores and scores[judge] != scores[local]:
                    found.append(f"{place}: {judge} gave {scores[judge]}, {local} {scores[local]}")
            if any(name in missing for name in config.reward.weights) and row["total"] is not None:
                found.append(f"{place}: a total of {row['total']} although {list(missing)} is missing")
    return found


def missing_by_reason(directory: Path) -> dict[str, int]:
    """How many scores are missing, by reason."""
    counted: Counter[str] = Counter()
    for iteration in _iterations(directory):
        for row in read_replies(directory, iteration).to_pylist():
            counted.update(reason for _, reason in row["missing"])
    return dict(counted)


def _iterations(directory: Path) -> range:
    return range(1, read_iterations(directory).num_rows + 1)
