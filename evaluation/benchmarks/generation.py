"""Replies that were sampled elsewhere: a JSON object a line, {"task", "id", "text", "audio"}.

A model answers a suite's questions: from their sound to prompts, replies and their sound, in the pools of a run.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from cluster.actor_pool import ActorPool, poll_once
from common.errors import InputError
from common.files import check_exists, parse_json, read_text, resolve_within
from configs.schema import Config, longest_prompt
from controller import build
from controller.checkpoint_checks import check_rater, check_weights, load_codec
from evaluation.benchmarks.grading import AnsweredItem, as_prompt, spoken_elsewhere
from evaluation.benchmarks.items import BenchmarkItem
from reward.pool import RewardPool
from reward.types import MissingScore, Scorecard, SpokenReply
from rollout.pool import RolloutPool
from rollout.vllm_engine import SamplingConfig
from speech.audio import Waveform
from speech.families import Family, family
from speech.types import Prompt, Reply, Turn
from speech.vocabulary import Vocabulary

AT_ONCE = 128
"""Questions of a batch: while one is rated, the next is drawn."""


TOO_LONG = MissingScore("question too long for the model", fault="rater")


Tell = Callable[..., None]


def prompt_ids(chosen: Family, vocabulary: Vocabulary, codes: np.ndarray) -> np.ndarray:
    """int32 [P]: a spoken question, codes int64 [S], up to where the reply begins."""
    return chosen.prompt([Turn(role="user", codes=codes)], vocabulary)


def draw_seed(seed: int, item: BenchmarkItem) -> int:
    """Of a reply: of the configuration's seed and the item alone, whatever else is asked beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item.name}".encode()).digest()[:4]) >> 1


class BenchmarkModel:
    """The model of a configuration, and its raters. `close` in the end. Needs Ray."""

    def __init__(self, config: Config, temperature: float | None, tell: Tell) -> None:
        """temperature: of sampling, 0 for the likeliest tokens; None: the configuration's. Raises InputError for what
        cannot be built."""
        self._config, self._tell = config, tell
        self._family = family(config.model.family)
        self._vocabulary = Vocabulary.from_checkpoint(Path(config.model.path), self._family.tokens)
        check_weights(config, self._vocabulary)
        self._codec = load_codec(config, self._vocabulary)
        for rater in config.reward.functions:
            check_rater(rater)
        self.sampling = SamplingConfig(
            temperature=config.rollout.temperature if temperature is None else temperature,
            max_tokens=config.rollout.max_new_tokens,
        )
        self.versions: dict[str, str] = {}
        """Of the raters and the codec, once there are replies."""
        self._company: list[ActorPool] = []
        self._pools: tuple[RolloutPool, RewardPool] | None = None
        self._found: dict[int, Reply] = {}

    def ask(self, items: Iterable[BenchmarkItem]) -> Iterator[list[AnsweredItem]]:
        """One reply to each item, in their order, a batch at a time. The recordings are let go of."""
        waiting = iter(items)
        ahead = self._order(list(islice(waiting, AT_ONCE)))
        while ahead:
            batch, ahead = ahead, self._order(list(islice(waiting, AT_ONCE)))
            yield self._answers(batch)

    def rate(self, spoken: Sequence[SpokenReply], raters: Sequence[str]) -> list[Scorecard]:
        """See `assessing.Rate`."""
        return self._open(spoken[0].prompt)[1].rate(list(spoken), list(raters))

    def close(self) -> None:
        for pool in self._pools or ():
            pool.stop()

    def _order(self, items: Sequence[BenchmarkItem]) -> list[tuple[BenchmarkItem, Prompt | None, int]]:
        """Items with their prompts and the numbers of their orders; None and 0 where the prompt is too long."""
        ordered: list[tuple[BenchmarkItem, Prompt | None, int]] = []
        for item in items:
            prompt = self._prompt(item)
            number = 0
            if prompt is not None:
                rollout, _ = self._open(prompt)
                number = rollout.submit(prompt, 1, self.sampling, draw_seed(self._config.run.seed, item))
            ordered.append((replace(item, sound=None), prompt, number))
        return ordered

    def _prompt(self, item: BenchmarkItem) -> Prompt | None:
        assert item.sound is not None  # readers are asked for them
        waveform = item.sound.load()
        if not len(waveform.samples):
            raise InputError(f"{item.place}: the question's sound is empty")
        ids = prompt_ids(self._family, self._vocabulary, self._codec.encode(waveform))
        return as_prompt(item, ids) if len(ids) <= longest_prompt(self._config) else None

    def _open(self, first: Prompt) -> tuple[RolloutPool, RewardPool]:
        """The pools, started when the first question is there to warm them."""
        if self._pools is None:
            config, chosen = self._config, self._family
            rollout = build.rollout_pool(config, chosen, self._tell, self._company, fixed=True)
            reward = build.reward_pool(config, chosen, self._tell, self._company)
            self._pools = rollout, reward
            rollout.begin([first], 1, self.sampling)
            reward.begin()
            self.versions = reward.start()
            rollout.start()
        return self._pools

    def _answers(self, batch: Sequence[tuple[BenchmarkItem, Prompt | None, int]]) -> list[AnsweredItem]:
        numbers = {number for _, prompt, number in batch if prompt is not None}
        if not numbers or self._pools is None:
            return [AnsweredItem(item=item, spoken=None, missing=TOO_LONG) for item, _, _ in batch]
        rollout, reward = self._pools
        while not numbers <= set(self._found):
            poll_once(self._company)
            self._found |= dict(rollout.replies())
        replies = [self._found.pop(number) for _, prompt, number in batch if prompt is not None]
        waveforms = iter(reward.decode([reply.token_ids for reply in replies]))
        drawn = iter(replies)
        answered = []
        for item, prompt, _ in batch:
            if prompt is None:
                answered.append(AnsweredItem(item=item, spoken=None, missing=TOO_LONG))
                continue
            reply = next(drawn)
            text = self._vocabulary.text(reply.token_ids)
            spoken = SpokenReply(prompt=prompt, reply=reply, text=text, waveform=next(waveforms))
            answered.append(AnsweredItem(item=item, spoken=spoken))
        return answered


REPLIES_AT_ONCE = 128
"""Replies whose sound is in memory at once."""


def read_replies(path: Path, items: Iterable[BenchmarkItem], tasks: Iterable[str]) -> Iterator[list[AnsweredItem]]:
    """Every item with its reply, in the order of the items, a few at a time.

    tasks: those that were chosen; replies to others are passed over. Raises InputError naming file and line for what is
    no reply, for two to one item, and for one to an item that there is not.
    """
    found, every = _lines(path), list(items)
    known, chosen = {item.name for item in every}, set(tasks)
    for name, (place, row) in found.items():
        if name not in known and row["task"] in chosen:
            raise InputError(f"{place} answers {name!r}, which is no item of the suite's task")
    for start in range(0, len(every), REPLIES_AT_ONCE):
        yield [_answered(item, found, path.parent) for item in every[start : start + REPLIES_AT_ONCE]]


def _lines(path: Path) -> dict[str, tuple[str, dict]]:
    """(place, row) by "task/id"."""
    if not check_exists(path):
        raise InputError(f"--replies: {path} does not exist")
    found: dict[str, tuple[str, dict]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        row = parse_json(line, place)
        if not isinstance(row, dict):
            raise InputError(f"{place} is not a JSON object with the fields task, id, text")
        for name in ("task", "id", "text"):
            if not isinstance(row.get(name), str):
                raise InputError(f"{place}: field {name!r} must be text, got {row.get(name)!r}")
        if not isinstance(row.get("audio"), str | None):
            raise InputError(f"{place}: field 'audio' must name a file, got {row['audio']!r}")
        key = f"{row['task']}/{row['id']}"
        if key in found:
            raise InputError(f"{place} answers {key!r}, as does {found[key][0]}")
        found[key] = place, row
    if not found:
        raise InputError(f"{path} has no replies")
    return found


def _answered(item: BenchmarkItem, found: Mapping[str, tuple[str, dict]], folder: Path) -> AnsweredItem:
    if item.name not in found:
        return AnsweredItem(item=item, spoken=None)
    place, row = found[item.name]
    waveform = None
    if row.get("audio"):
        try:
            waveform = Waveform.read(resolve_within(folder, row["audio"]))
        except (InputError, OSError, RuntimeError) as error:  # libsndfile's own error is a RuntimeError
            raise InputError(f"{place}: field 'audio': {row['audio']!r} cannot be read: {error}") from error
    return AnsweredItem(item=item, spoken=spoken_elsewhere(item, row["text"], waveform))
