"""What a run reads from disk, checked before anything starts: the data, and the checkpoint that it goes on from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controller.checkpoints import Checkpoint, Checkpoints
from controller.config import Config
from controller.fitting import check_reward, check_weights
from controller.preference import Structure
from learner.checkpoint import check_checkpoint
from speech.errors import InputError
from speech.families import Family, family
from speech.interleave import check, kind_table
from speech.records import Demonstration, Pair, Prompt, read_demonstrations, read_pairs, read_prompts
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads from disk, checked."""

    family: Family
    vocabulary: Vocabulary
    prompts: list[Prompt]
    demonstrations: list[Demonstration]
    held_out: dict[str, list[Prompt]]
    pairs: list[Pair]
    """From `preference.pairs.file`; empty when replies are sampled."""


def read_inputs(config: Config) -> Inputs:
    """Reads the data. Raises InputError naming what does not fit."""
    chosen = family(config.model.family)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.checkpoint), chosen.tokens)
    inputs = Inputs(
        family=chosen,
        vocabulary=vocabulary,
        prompts=read_prompts(Path(config.data.prompts), vocabulary),
        demonstrations=read_demonstrations(Path(config.data.demonstrations), vocabulary),
        held_out={name: read_prompts(Path(path), vocabulary) for name, path in config.data.held_out.items()},
        pairs=read_pairs(Path(config.preference.pairs.file), vocabulary) if config.preference.pairs.file else [],
    )
    check_weights(config, vocabulary)
    check_reward(config, vocabulary)
    _check_streams(config, inputs)
    _check_replies(config, inputs)
    longest = max(len(p.token_ids) for p in [*inputs.prompts, *(p for ps in inputs.held_out.values() for p in ps)])
    if longest > longest_prompt(config):
        raise InputError(
            f"model.max_length: {config.model.max_length} is too short for the longest prompt, {longest} tokens, plus "
            f"rollout.max_tokens = {config.rollout.max_tokens}"
        )
    source = config.preference.pairs.file or config.data.prompts
    if len(inputs.pairs or inputs.prompts) < config.rollout.prompts:
        raise InputError(
            f"rollout.prompts: {config.rollout.prompts} an iteration, but {source} has only "
            f"{len(inputs.pairs or inputs.prompts)}"
        )
    return inputs


def longest_prompt(config: Config) -> int:
    """Tokens of a prompt that leaves room for the longest reply."""
    return config.model.max_length - config.rollout.max_tokens


def _check_streams(config: Config, inputs: Inputs) -> None:
    """Of a family with several streams: prompts have whole steps, and one device holds the engine's model."""
    streams = inputs.family.streams
    if streams > 1 and config.rollout.tensor_parallel > 1:
        raise InputError(
            f"rollout.tensor_parallel: {config.rollout.tensor_parallel}, but the engine of family {inputs.family.name} "
            "keeps its model on one device; set it to 1"
        )
    sets = {config.data.prompts: inputs.prompts}
    sets |= {config.data.held_out[name]: prompts for name, prompts in inputs.held_out.items()}
    for file, prompts in sets.items():
        for row, prompt in enumerate(prompts, 1):
            if len(prompt.token_ids) % streams:
                raise InputError(f"{file} row {row}: field 'token_ids' {_half(inputs.family, len(prompt.token_ids))}")


def _half(chosen: Family, tokens: int) -> str:
    return f"has {tokens} tokens, where family {chosen.name} has {chosen.streams} for each step"


def _check_replies(config: Config, inputs: Inputs) -> None:
    """Replies to learn from must fit into the model and, where sampling is held to a structure, follow it."""
    wanted = config.preference.objective == "dpo" and config.preference.pairs.chosen == "demonstration"
    if wanted and {d.prompt_id for d in inputs.demonstrations}.isdisjoint(prompt.id for prompt in inputs.prompts):
        raise InputError(
            f"preference.pairs.chosen: demonstration, but no prompt of {config.data.prompts} has one in "
            f"{config.data.demonstrations} (column prompt_id)"
        )
    held_to = structure(config, inputs.family, inputs.vocabulary)
    places = [(config.data.demonstrations, "reply_ids", d.prompt_ids, d.reply_ids) for d in inputs.demonstrations]
    for pair in inputs.pairs:
        for field, ids in (("chosen_ids", pair.chosen_ids), ("rejected_ids", pair.rejected_ids)):
            places.append((config.preference.pairs.file, field, pair.prompt_ids, ids))
    seen: dict[str, int] = {}
    for file, field, prompt_ids, ids in places:
        row = seen[file + field] = seen.get(file + field, 0) + 1
        check_reply(config, held_to, f"{file} row {row}", field, prompt_ids, ids)


def check_reply(
    config: Config, held_to: Structure | None, place: str, field: str, prompt_ids: np.ndarray, ids: np.ndarray
) -> None:
    """Raises InputError for a reply that is too long to learn from, has half a step, or does not follow the structure.

    held_to: what sampling is held to. place: file and row. field: where in it the reply stands.
    """
    if len(prompt_ids) + len(ids) > config.model.max_length:
        raise InputError(
            f"{place}: prompt and {field} have {len(prompt_ids) + len(ids)} tokens, more than model.max_length = "
            f"{config.model.max_length}"
        )
    chosen = family(config.model.family)
    for name, part in (("prompt_ids", prompt_ids), (field, ids)):
        if len(part) % chosen.streams:
            raise InputError(f"{place}: field {name!r} {_half(chosen, len(part))}")
    defect = check(ids, *held_to) if held_to else None
    if defect is not None:
        raise InputError(f"{place}: {field} does not follow the structure of family {config.model.family}: {defect}")


def fingerprints(inputs: Inputs) -> dict[str, str]:
    """A mark of each set of rows that a run deals out in order: another mark, other rows or another order."""
    sets: dict[str, list[list[np.ndarray]]] = {
        "data.prompts": [[p.token_ids] for p in inputs.prompts],
        "data.demonstrations": [[d.prompt_ids, d.reply_ids] for d in inputs.demonstrations],
        "preference.pairs.file": [[p.prompt_ids, p.chosen_ids, p.rejected_ids] for p in inputs.pairs],
        **{f"data.held_out.{name}": [[p.token_ids] for p in prompts] for name, prompts in inputs.held_out.items()},
    }
    marks = {}
    for name, rows in sets.items():
        digest = hashlib.sha256()
        for row in rows:
            digest.update(b"".join(len(ids).to_bytes(4) + np.asarray(ids, dtype="<i4").tobytes() for ids in row))
        marks[name] = digest.hexdigest()[:16]
    return marks


def constrained(config: Config, chosen: Family) -> bool:
    """Whether sampling is held to the family's interleave structure."""
    return config.rollout.structure == "on" or (config.rollout.structure == "auto" and not chosen.follows_pattern)


def structure(config: Config, chosen: Family, vocabulary: Vocabulary) -> Structure | None:
    """What sampling is held to: the family's pattern and the kinds of all ids; None when it is free."""
    return (chosen.interleave, kind_table(vocabulary)) if constrained(config, chosen) else None


def check_learner(config: Config, checkpoint: Path) -> None:
    """Raises InputError unless the learner can go on from the checkpoint; before anything starts."""
    learner = config.learner
    check_checkpoint(checkpoint, ranks=learner.ranks, zero_stage=learner.zero_stage, dtype=config.model.dtype)


def newest_checkpoint(config: Config, run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that its learner can go on from; None when none was ever written.

    Raises InputError, of the newest, when there are some and none will do.
    """
    newest, refusal = Checkpoints(run).newest(), None
    for checkpoint in Checkpoints(run).whole():
        try:
            check_learner(config, checkpoint.directory)
        except InputError as error:
            refusal = refusal or error
        else:
            return checkpoint
    if refusal is not None:
        raise refusal
    return newest
