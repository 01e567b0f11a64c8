"""A reward server: the Ray actor that decodes replies and asks the raters. And its pool."""

import importlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.asking import CrewSettings, Renewal
from cluster.crew import Crew
from cluster.jobs import Job
from cluster.member import Member
from cluster.places import Place
from cluster.pool import Pool
from reward.cache import merged, read_answers, write_answers
from reward.rater import Rater, Scorecard, SpokenReply
from reward.rating import added, cards
from reward.remote import RemoteRater
from speech.errors import InputError
from speech.families import Family
from speech.records import Group, Prompt, Reply
from speech.vocabulary import Vocabulary
from speech.waveform import Waveform

JUDGES_SHARE = 0.8
"""Share of the deadline for a batch after which judges that have not answered are no longer waited for."""
MOST_ANSWERS = 200_000
"""Judges' answers that a checkpoint keeps, some 20 MB; the ones of no use for the longest time go first."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something named in the configuration."""

    use: str
    """"module:Class"."""
    arguments: dict[str, Any]
    name: str = ""
    """What a rater's score is called."""

    def build(self) -> Any:
        """Calls the class. Raises InputError when the name leads nowhere."""
        return load(self.use)(**self.arguments)


def load(name: str) -> Any:
    """The object that "module:attribute" names."""
    module, separator, attribute = name.partition(":")
    if not separator:
        raise InputError(f"{name!r} is not of the form module:Class")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's own raises when it is imported
        raise InputError(f"{name!r} cannot be loaded: {error or type(error).__name__}") from error


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    servers: int
    needs: Mapping[str, float]
    """Ray's resources of each server."""
    checkpoint: str
    """For its tokenizer."""
    codec: Part
    """Loaded through `codec.load(path)`."""
    raters: tuple[Part, ...]
    start_seconds: float
    score_seconds: float
    """Deadline for scoring a batch."""
    beat_seconds: float
    """How long a server may give no sign of life."""


class RewardServer(Member):
    """Scores groups. A rater that raises gives Missing, never a number (method §7, rule 1)."""

    def __init__(self, settings: ServerSettings, family: Family, answers: pa.Table | None = None) -> None:
        """answers: of remote raters, from before."""
        super().__init__()
        self._seconds = settings.score_seconds
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._codec = load(settings.codec.use).load(Path(settings.codec.arguments["path"]))
        self._raters: list[Rater] = [part.build() for part in settings.raters]
        for part, rater in zip(settings.raters, self._raters, strict=True):
            if part.name and part.name != rater.name:
                raise InputError(f"reward.raters: {part.use} calls its score {rater.name!r}, not {part.name!r}")
        self._born = time.time()
        if answers is not None:
            self.load_cache(answers)

    def versions(self) -> dict[str, str]:
        """Versions of the raters and the codec, for the records."""
        return {rater.name: rater.version for rater in self._raters} | {"codec": self._codec.version}

    def score(self, groups: list[Group]) -> list[list[Scorecard]]:
        """A card for each reply of each group."""
        end = time.monotonic() + JUDGES_SHARE * self._seconds
        spoken = [
            SpokenReply(
                prompt=group.prompt,
                reply=reply,
                text=self._vocabulary.text(reply.token_ids),
                waveform=self._decode(reply.token_ids),
            )
            for group in groups
            for reply in group.replies
        ]
        rated = iter(cards(self._raters, spoken, end - time.monotonic()))
        return [[next(rated) for _ in group.replies] for group in groups]

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """A card for each reply, which is there already, from the raters of these names alone."""
        chosen = [rater for rater in self._raters if rater.name in raters]
        return cards(chosen, spoken, JUDGES_SHARE * self._seconds)

    def cache_entries(self) -> pa.Table:
        """What remote raters answered, of the schema `reward.cache.ANSWERS`."""
        return merged(rater.cache.table() for rater in self._raters if hasattr(rater, "cache"))

    def load_cache(self, answers: pa.Table) -> int:
        """Adds answers from elsewhere. Returns how many it was given."""
        for rater in self._raters:
            if hasattr(rater, "cache"):
                rater.cache.load(answers)
        return answers.num_rows

    def counters(self) -> tuple[float, dict[str, dict[str, float]], dict[str, bool]]:
        """When this server was started, what happened with each remote rater since (`remote.Counters`), and whether it
        is left alone now."""
        asked = [rater for rater in self._raters if isinstance(rater, RemoteRater)]
        return self._born, {r.name: r.counters() for r in asked}, {r.name: r.left_alone for r in asked}

    def decode(self, replies: list[np.ndarray]) -> list[Waveform | None]:
        """The waveform of the speech tokens among ids [T] of each reply, or None when there are none."""
        return [self._decode(ids) for ids in replies]

    def measure(self, function: str, replies: list[np.ndarray]) -> list[float | None]:
        """A function of a waveform, named "module:function", of each reply; None for one without speech."""
        measured = load(function)
        return [None if waveform is None else float(measured(waveform)) for waveform in self.decode(replies)]

    def _decode(self, token_ids: np.ndarray) -> Waveform | None:
        codes = self._vocabulary.codes(token_ids)
        return self._codec.decode(codes) if len(codes) else None


class RewardPool(Pool):
    """Reward servers by name. One that dies is replaced, and what it was rating is rated by another."""

    def __init__(
        self, settings: ServerSettings, family: Family, tell: Callable[..., None], company: list[Crew] | None = None
    ) -> None:
        """tell: takes events, a kind and fields. company: see `Crew`."""
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}

        def make(name: str, place: Place) -> Any:
            remote = ray.remote(RewardServer).options(runtime_env=environment, **place.options())
            return remote.remote(settings, family, self._answers)

        self._start_seconds = settings.start_seconds
        self._answers: ray.ObjectRef | None = None
        """Of remote raters, as last saved or loaded: what a new server starts with."""
        self._counters: dict[tuple[str, float], dict[str, dict[str, float]]] = {}
        """As last heard, by name and birth of a server: what a lost one did goes on counting."""
        self.left_alone: dict[str, int] = {}
        """Servers that do not ask a remote rater now, as they said when `counters` was called last."""
        self._crew = Crew(
            CrewSettings(
                role="reward",
                members=settings.servers,
                start_seconds=settings.start_seconds,
                renew_seconds=settings.start_seconds,
                work_seconds=settings.score_seconds,
                beat_seconds=settings.beat_seconds,
                renewed=False,
                needs=settings.needs,
            ),
            make=make,
            warm=lambda server: server.versions.remote(),
            tell=tell,
            company=company,
        )
        self._ordered: dict[int, Group] = {}
        """What is not rated yet, by number: a prompt with one of its replies each."""
        self._job = Job(
            lambda server, items: server.score.remote([self._ordered[item] for item in items]), "scoring replies"
        )
        self._crew.open(self._job)

    def begin(self, *, strict: bool = True) -> None:
        """Has every server start. strict: whether one that fails ends the start."""
        self._crew.begin(strict=strict)

    def start(self, *, strict: bool = True) -> dict[str, str]:
        """Waits for every server. Returns the versions of raters and codec. strict: whether one that fails ends the
        start."""
        return next(iter(self._crew.start(strict=strict).values()))

    def order(self, prompt: Prompt, reply: Reply) -> int:
        """A reply to be rated by whoever is free. Returns its number."""
        number = self._job.add(f"reply {reply.index} to prompt {prompt.id}")
        self._ordered[number] = Group(prompt=prompt, replies=[reply])
        return number

    def cards(self) -> list[tuple[int, Scorecard]]:
        """Those that came since the last call, each with the number of its order."""
        found = self._job.leases.collect()
        for number in found:
            del self._ordered[number]
        return [(number, card) for number, [card] in found.items()]

    def abandon(self) -> None:
        """Gives up everything that was ordered and is not there."""
        self._job.call_off()
        self._job.leases.collect()
        self._ordered.clear()

    def score(self, groups: list[Group]) -> list[list[Scorecard]]:
        """Cards by group and reply, in the order given."""
        return self._crew.work(
            [f"prompt {group.prompt.id}" for group in groups],
            lambda server, items: server.score.remote([groups[i] for i in items]),
            f"scoring {len(groups)} groups",
        )

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """A card for each reply, which is there already, from the raters of these names alone, in the order given."""
        return self._crew.work(
            [f"reply to {one.prompt.id}" for one in spoken],
            lambda server, items: server.rate.remote([spoken[i] for i in items], raters),
            f"rating {len(spoken)} replies",
        )

    def decode(self, replies: list[np.ndarray]) -> list:
        """Waveforms of a few replies."""
        return self._crew.work(
            _numbered(replies), lambda server, items: server.decode.remote([replies[i] for i in items]), "decoding"
        )

    def measure(self, function: str, replies: list[np.ndarray]) -> list[float]:
        """A function of a waveform, named "module:function", of each reply that has speech."""
        found = self._crew.work(
            _numbered(replies),
            lambda server, items: server.measure.remote(function, [replies[i] for i in items]),
            "measuring",
        )
        return [value for value in found if value is not None]

    def share_cache(self) -> pa.Table:
        """Every server, and those that are still to come, get what the judges answered any of them. Returns it.

        What a server was answered after that goes with it when it is lost or leaves, and is asked again.
        """
        before = [] if self._answers is None else [ray.get(self._answers, timeout=self._start_seconds)]
        found = self._everybody(lambda server: server.cache_entries.remote(), "handing over the judges' answers")
        table = merged([*before, *found.values()], MOST_ANSWERS)
        self._hand_out(table)
        return table

    def save_cache(self, path: Path) -> int:
        """Shares what the judges answered so far, and writes it as one Parquet file. Returns how many answers."""
        table = self.share_cache()
        write_answers(path, table)
        return table.num_rows

    def load_cache(self, path: Path) -> int:
        """Gives every server, and those that are still to come, the answers of a file; before `start` or after it.
        Returns how many. Raises InputError for a file that is none."""
        table = read_answers(path)
        self._hand_out(table)
        return table.num_rows

    def _hand_out(self, table: pa.Table) -> None:
        self._answers = ray.put(table)
        if table.num_rows and self._crew.names:
            self._everybody(lambda server: server.load_cache.remote(self._answers), "taking the judges' answers")

    def counters(self) -> dict[str, dict[str, float]]:
        """What happened with each remote rater since the start of the run, all servers together; none goes down."""
        found = self._everybody(lambda server: server.counters.remote(), "counting")
        alone: Counter[str] = Counter()
        for name, (born, by_rater, left) in found.items():
            self._counters[name, born] = by_rater
            alone.update({rater: int(is_left) for rater, is_left in left.items()})
        self.left_alone = dict(alone)
        return added(self._counters.values())

    def _everybody(self, call: Callable[[Any], ray.ObjectRef], doing: str) -> dict[str, Any]:
        """Asks every server that is up. Returns their answers by name, without those of servers lost meanwhile."""
        found: dict[str, Any] = {}
        self._crew.renew(Renewal(call=call, check=found.__setitem__, doing=doing))
        return found


def _numbered(replies: list[np.ndarray]) -> list[str]:
    return [f"reply {number}" for number in range(1, len(replies) + 1)]
