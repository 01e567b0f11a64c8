"""What a run reads from disk, checked before anything starts: the data, and the checkpoint that it goes on from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from configs.schema import Config, longest_prompt
from configs.validate import data_paths, data_sources, source_name
from controller.checkpoint_checks import check_reward, check_weights
from controller.checkpointing import Checkpoint, CheckpointManager
from data.dataset import Dataset
from data.open_dataset import fingerprint_of_rows, open_demonstrations, open_pairs, open_prompts
from data.parquet import id_lists
from data.records import read_pairs, read_prompts
from data.sampler import DEMONSTRATIONS, PROMPTS, Sampler, build_sampler
from learner.checkpoint import check_checkpoint
from speech.families import Family, family
from speech.grammar import Structure, check_reply_grammar, follow_grammar, token_kinds
from speech.types import Demonstration, PreferencePair, Prompt
from speech.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a run reads from disk, checked. Prompts and demonstrations stay there."""

    family: Family
    vocabulary: Vocabulary
    prompts: Dataset[Prompt]
    demonstrations: Dataset[Demonstration]
    held_out: dict[str, list[Prompt]]
    """Asked all at once, and so in memory."""
    pairs: Dataset[PreferencePair] | list[PreferencePair]
    """From `algorithm.dpo.pairs_file`; empty when replies are sampled."""


def read_inputs(config: Config) -> RunInputs:
    """Reads the data. Raises InputError naming what does not fit."""
    chosen = family(config.model.family)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.path), chosen.tokens)
    inputs = RunInputs(
        family=chosen,
        vocabulary=vocabulary,
        prompts=open_prompts(data_paths(config.data.prompts), vocabulary),
        demonstrations=open_demonstrations(data_paths(config.data.sft), vocabulary),
        held_out={name: read_prompts(Path(path), vocabulary) for name, path in config.data.validation.items()},
        pairs=_pairs(config, vocabulary),
    )
    check_weights(config, vocabulary)
    check_reward(config, vocabulary)
    _check_streams(config, inputs)
    _check_replies(config, inputs)
    asked = [len(prompt.token_ids) for prompts in inputs.held_out.values() for prompt in prompts]
    longest = max([inputs.prompts.longest, *asked])
    if longest > longest_prompt(config):
        raise InputError(
            f"model.max_model_len: {config.model.max_model_len} is too short for the longest prompt, {longest} tokens, "
            "plus "
            f"rollout.max_new_tokens = {config.rollout.max_new_tokens}"
        )
    source = config.algorithm.dpo.pairs_file or source_name(config.data.prompts)
    if len(inputs.pairs or inputs.prompts) < config.rollout.batch_size:
        raise InputError(
            f"rollout.batch_size: {config.rollout.batch_size} an iteration, but {source} has only "
            f"{len(inputs.pairs or inputs.prompts)}"
        )
    return inputs


def _pairs(config: Config, vocabulary: Vocabulary) -> Dataset[PreferencePair] | list[PreferencePair]:
    if not config.algorithm.dpo.pairs_file:
        return []
    path = Path(config.algorithm.dpo.pairs_file)
    return read_pairs(path, vocabulary) if path.suffix == ".jsonl" else open_pairs([path], vocabulary)


def build_samplers(config: Config, inputs: RunInputs) -> tuple[Sampler, Sampler]:
    """Of prompts, or pairs from a file, and of demonstrations: a run's order of its data, from the beginning."""
    seed, pairs = config.run.seed, inputs.pairs
    weights = {key: [one.weight for one in data_sources(getattr(config.data, key))] for key in ("prompts", "sft")}
    return (
        build_sampler([len(pairs)], [1.0], seed, PROMPTS)
        if pairs
        else build_sampler(inputs.prompts.counts, weights["prompts"], seed, PROMPTS),
        build_sampler(inputs.demonstrations.counts, weights["sft"], seed, DEMONSTRATIONS),
    )


def _check_streams(config: Config, inputs: RunInputs) -> None:
    """Of a family with several streams: prompts have whole steps, and its engine can be given what is asked of it."""
    streams, name = inputs.family.streams, inputs.family.name
    if streams == 1:
        return
    if config.rollout.tensor_parallel_size > 1:
        raise InputError(
            f"rollout.tensor_parallel_size: {config.rollout.tensor_parallel_size}, but the engine of family {name} "
            "keeps its "
            "model on one device; set it to 1"
        )
    if config.weight_sync.backend == "broadcast":
        raise InputError(f"weight_sync.backend: broadcast reaches no engine of family {name}; use shm or object_store")
    begin = 0
    for table in inputs.prompts.stream("token_ids"):
        lengths = id_lists(table["token_ids"]).lengths
        for row in np.flatnonzero(lengths % streams).tolist():
            place = inputs.prompts.place(begin + row)
            raise InputError(f"{place}: field 'token_ids' {_half(inputs.family, int(lengths[row]))}")
        begin += table.num_rows
    for held_out, prompts in inputs.held_out.items():
        for row, prompt in enumerate(prompts, 1):
            if len(prompt.token_ids) % streams:
                place = f"{config.data.validation[held_out]} row {row}"
                raise InputError(f"{place}: field 'token_ids' {_half(inputs.family, len(prompt.token_ids))}")


def _half(chosen: Family, tokens: int) -> str:
    return f"has {tokens} tokens, where family {chosen.name} has {chosen.streams} for each step"


def _check_replies(config: Config, inputs: RunInputs) -> None:
    """Replies to learn from must fit into the model and, where sampling is held to a structure, follow it."""
    wanted = config.algorithm.name == "dpo" and config.algorithm.dpo.chosen_source == "demonstration"
    if wanted and not np.isin(inputs.prompts.hashes("id"), inputs.demonstrations.hashes("prompt_id")).any():
        raise InputError(
            f"algorithm.dpo.chosen_source: demonstration, but no prompt of {source_name(config.data.prompts)} has one "
            "in "
            f"{source_name(config.data.sft)} (column prompt_id)"
        )
    held_to = reply_structure(config, inputs.family, inputs.vocabulary)
    _check_all(config, held_to, inputs.demonstrations, ["reply_ids"])
    if isinstance(inputs.pairs, Dataset):
        _check_all(config, held_to, inputs.pairs, ["chosen_ids", "rejected_ids"])
        return
    for row, pair in enumerate(inputs.pairs, start=1):
        for name, ids in (("chosen_ids", pair.chosen_ids), ("rejected_ids", pair.rejected_ids)):
            place = f"{config.algorithm.dpo.pairs_file} row {row}"
            check_reply(config, held_to, place, name, pair.prompt_ids, ids)


def _check_all(config: Config, held_to: Structure | None, rows: Dataset, names: list[str]) -> None:
    """`check_reply` of these columns of all rows; of those that were prepared for this family and fit, none."""
    loose = held_to is None and family(config.model.family).streams == 1
    if rows.longest <= config.model.max_model_len and (loose or rows.families == {config.model.family}):
        return
    begin, streams = 0, family(config.model.family).streams
    for table in rows.stream("prompt_ids", *names):
        prompts = id_lists(table["prompt_ids"])
        good = prompts.lengths % streams == 0
        for name in names:
            ids = id_lists(table[name])
            good &= ids.lengths % streams == 0
            good &= prompts.lengths + ids.lengths <= config.model.max_model_len
            if held_to is not None:
                good &= follow_grammar(ids.values, ids.offsets, *held_to)
        for row in np.flatnonzero(~good).tolist():
            for name in names:
                ids = id_lists(table[name]).row(row)
                check_reply(config, held_to, rows.place(begin + row), name, prompts.row(row), ids)
        begin += table.num_rows


def check_reply(
    config: Config, held_to: Structure | None, place: str, field: str, prompt_ids: np.ndarray, ids: np.ndarray
) -> None:
    """Raises InputError for a reply that is too long to learn from, has half a step, or does not follow the structure.

    held_to: what sampling is held to. place: file and row. field: where in it the reply stands.
    """
    if len(prompt_ids) + len(ids) > config.model.max_model_len:
        raise InputError(
            f"{place}: prompt and {field} have {len(prompt_ids) + len(ids)} tokens, more than model.max_model_len = "
            f"{config.model.max_model_len}"
        )
    chosen = family(config.model.family)
    for name, part in (("prompt_ids", prompt_ids), (field, ids)):
        if len(part) % chosen.streams:
            raise InputError(f"{place}: field {name!r} {_half(chosen, len(part))}")
    defect = check_reply_grammar(ids, *held_to) if held_to else None
    if defect is not None:
        raise InputError(f"{place}: {field} does not follow the structure of family {config.model.family}: {defect}")


def fingerprints(inputs: RunInputs) -> dict[str, str]:
    """A mark of each set of rows that a run deals out in order: another mark, other rows or another order."""
    pairs = inputs.pairs
    return {
        "data.prompts": _mark(inputs.prompts),
        "data.sft": _mark(inputs.demonstrations),
        "algorithm.dpo.pairs_file": _mark(pairs)
        if isinstance(pairs, Dataset)
        else fingerprint_of_rows([p.prompt_ids, p.chosen_ids, p.rejected_ids] for p in pairs),
        **{
            f"data.validation.{n}": fingerprint_of_rows([p.token_ids] for p in prompts)
            for n, prompts in inputs.held_out.items()
        },
    }


def _mark(rows: Dataset) -> str:
    """Of one source its own, which is that of its rows."""
    if len(rows.marks) == 1:
        return rows.marks[0]
    return hashlib.sha256(" ".join(rows.marks).encode()).hexdigest()[:16]


def is_constrained(config: Config, chosen: Family) -> bool:
    """Whether sampling is held to the family's interleave structure."""
    return config.rollout.constrained_decoding == "on" or (
        config.rollout.constrained_decoding == "auto" and not chosen.follows_pattern
    )


def reply_structure(config: Config, chosen: Family, vocabulary: Vocabulary) -> Structure | None:
    """What sampling is held to: the family's pattern and the kinds of all ids; None when it is free."""
    return (chosen.interleave, token_kinds(vocabulary)) if is_constrained(config, chosen) else None


def check_learner(config: Config, checkpoint: Path) -> None:
    """Raises InputError unless the learner can go on from the checkpoint; before anything starts."""
    learner = config.learner
    check_checkpoint(checkpoint, ranks=learner.num_workers, zero_stage=learner.zero_stage, dtype=config.model.dtype)


def newest_checkpoint(config: Config, run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that its learner can go on from; None when none was ever written.

    Raises InputError, of the newest, when there are some and none will do.
    """
    newest, refusal = CheckpointManager(run).newest(), None
    for checkpoint in CheckpointManager(run).whole():
        try:
            check_learner(config, checkpoint.directory)
        except InputError as error:
            refusal = refusal or error
        else:
            return checkpoint
    if refusal is not None:
        raise refusal
    return newest
