"""The batch arithmetic in words, for the start of a run and its record. Importable without torch."""

from controller.config import Config


def arithmetic(config: Config) -> list[tuple[str, str]]:
    """The batch arithmetic in words, a (what, how much) pair a line, for the start of a run and its record."""
    c = config
    if c.preference.objective == "dpo":
        return _arithmetic_of_pairs(c)
    rows = c.replies + c.anchor.rows
    per_rank = -(-rows // c.learner.ranks)
    return [
        ("replies an iteration", f"{c.rollout.prompts} prompts × {c.rollout.group_size} = {c.replies}"),
        ("learner rows an iteration", f"{c.replies} replies + {c.anchor.rows} demonstrations = {rows}"),
        (
            "rows a rank",
            f"{rows} / {c.learner.ranks} ranks = {per_rank}, {c.learner.micro_batch_tokens:,} tokens at once at most",
        ),
        ("optimiser steps", f"{c.run.iterations} (one an iteration)"),
        ("replies in all", f"{c.run.iterations} × {c.replies} = {c.run.iterations * c.replies:,}"),
    ]


def _arithmetic_of_pairs(c: Config) -> list[tuple[str, str]]:
    pairs = c.rollout.prompts
    source = (
        ("pairs an iteration", f"{pairs} from {c.preference.pairs.file}")
        if c.preference.pairs.file
        else ("replies an iteration", f"{pairs} prompts × {c.rollout.group_size} = {c.replies}, at most {pairs} pairs")
    )
    return [
        source,
        (
            "learner rows an iteration",
            f"at most {pairs} × 2 + {c.anchor.rows} demonstrations = {2 * pairs + c.anchor.rows}",
        ),
        ("optimiser steps", f"{c.run.iterations} (one an iteration)"),
    ]
