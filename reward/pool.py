"""The pool of reward servers, and of the decoders that work for them: replies are ordered, and cards come."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cluster.actor_pool import ActorPool, SpeechPool, poll_once
from cluster.placement import Placement
from cluster.pool_calls import ActorPoolConfig, WeightUpdateRequest
from cluster.task_queue import MAX_ATTEMPTS, TaskQueue
from cluster.waiting import CallTimeout
from reward.decoder_pool import DecodeFailed, DecoderPool
from reward.remote.cache import merge_answers, read_answers, write_answers
from reward.server import RewardServer, RewardServerConfig, add_derived_scores
from reward.types import Scorecard, SpokenReply
from speech.audio import Waveform
from speech.families import Family
from speech.types import Prompt, Reply, ReplyGroup

MOST_ANSWERS = 200_000
"""Judges' answers that a checkpoint keeps, some 20 MB; the ones of no use for the longest time go first."""


class RewardPool(SpeechPool):
    """Reward servers by name, and the decoders that work for them, if any. One that dies is replaced, and what it was
    rating is rated by another."""

    def __init__(
        self,
        settings: RewardServerConfig,
        family: Family,
        tell: Callable[..., None],
        company: list[ActorPool] | None = None,
    ) -> None:
        """tell: takes events, a kind and fields. company: see `ActorPool`."""
        self._company = [] if company is None else company
        self.decoders = self._decoders(settings, family, tell, self._company)
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}

        def make(name: str, place: Placement) -> Any:
            remote = ray.remote(RewardServer).options(runtime_env=environment, **place.options())
            return remote.remote(settings, family, self._answers)

        self._start_seconds = settings.start_seconds
        self._answers: ray.ObjectRef | None = None
        """Of remote raters, as last saved or loaded: what a new server starts with."""
        self._counters: dict[tuple[str, float], dict[str, dict[str, float]]] = {}
        """As last heard, by name and birth of a server: what a lost one did goes on counting."""
        self.left_alone: dict[str, int] = {}
        """Servers that do not ask a remote rater now, as they said when `counters` was called last."""
        self._actor_pool = ActorPool(
            ActorPoolConfig(
                role="reward",
                num_replicas=settings.servers,
                start_timeout_s=settings.start_seconds,
                update_timeout_s=settings.start_seconds,
                task_timeout_s=settings.score_seconds,
                heartbeat_timeout_s=settings.beat_seconds,
                needs_update=False,
                resources=settings.needs,
            ),
            create=make,
            warm_up=lambda server: server.versions.remote(),
            emit_event=tell,
            pools=self._company,
        )
        self._ordered: dict[int, ReplyGroup] = {}
        """What is not rated yet, by number: a prompt with one of its replies each."""
        self._numbers = count()
        self._decoding: dict[int, int] = {}
        """Numbers of those that decoders have, by the decoders' own."""
        self._rating: dict[int, tuple[int, ray.ObjectRef | None]] = {}
        """Numbers of those that can be rated, each with its sound where decoders make it, by the job's own."""
        self._lost: Counter[int] = Counter()
        """How often the sound of each was lost."""
        self._cards: dict[int, Scorecard] = {}
        """That nobody has asked for yet."""
        self._queue = TaskQueue(self._have_rated, "scoring replies")
        self._actor_pool.add_queue(self._queue)

    @staticmethod
    def _decoders(
        settings: RewardServerConfig, family: Family, tell: Callable[..., None], company: list[ActorPool]
    ) -> DecoderPool | None:
        if settings.decoders is None:
            return None
        return DecoderPool(
            settings.decoders,
            checkpoint=settings.checkpoint,
            codec=settings.codec,
            family=family,
            work_seconds=settings.score_seconds,
            beat_seconds=settings.beat_seconds,
            tell=tell,
            company=company,
        )

    def begin(self, *, strict: bool = True) -> None:
        """Has every server start. strict: whether one that fails ends the start."""
        if self.decoders is not None:
            self.decoders.begin(strict=strict)
        self._actor_pool.begin(strict=strict)

    def start(self, *, strict: bool = True) -> dict[str, str]:
        """Waits for every server. Returns the versions of raters and codec. strict: whether one that fails ends the
        start."""
        codec = {} if self.decoders is None else {"codec": self.decoders.start(strict=strict)}
        return next(iter(self._actor_pool.start(strict=strict).values())) | codec

    def order(self, prompt: Prompt, reply: Reply) -> int:
        """A reply to be rated by whoever is free. Returns its number."""
        number = next(self._numbers)
        self._ordered[number] = ReplyGroup(prompt=prompt, replies=[reply])
        self._pass_on(number)
        return number

    def cards(self) -> list[tuple[int, Scorecard]]:
        """Those that came since the last call, each with the number of its order."""
        self._hand_on()
        found, self._cards = list(self._cards.items()), {}
        return found

    def abandon(self) -> None:
        """Gives up everything that was ordered and is not there."""
        if self.decoders is not None:
            self.decoders.abandon()
        self._queue.cancel()
        self._queue.leases.collect()
        for kept in (self._ordered, self._decoding, self._rating, self._lost, self._cards):
            kept.clear()

    def stop(self) -> None:
        if self.decoders is not None:
            self.decoders.stop()
        super().stop()

    def _hand_on(self) -> None:
        """What decoders and servers have done since the last call."""
        if self.decoders is not None:
            for item, sound in self.decoders.sounds():
                self._to_be_rated(self._decoding.pop(item), sound)
        for item, [card] in self._queue.leases.collect().items():
            number, _ = self._rating.pop(item)
            if not isinstance(card, DecodeFailed):
                self._cards[number] = card
                del self._ordered[number]
                self._lost.pop(number, None)
                continue
            self._lost[number] += 1
            if self._lost[number] >= MAX_ATTEMPTS:
                raise CallTimeout(f"the sound of {self._name(number)} was lost {MAX_ATTEMPTS} times: {card.reason}")
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        """To the decoders where there are any, else to be rated at once."""
        if self.decoders is None:
            self._to_be_rated(number, None)
            return
        [reply] = self._ordered[number].replies
        self._decoding[self.decoders.order(self._name(number), reply.token_ids)] = number

    def _to_be_rated(self, number: int, sound: ray.ObjectRef | None) -> None:
        self._rating[self._queue.add(self._name(number))] = number, sound

    def _have_rated(self, server: Any, items: list[int]) -> ray.ObjectRef:
        groups = [self._ordered[self._rating[item][0]] for item in items]
        if self.decoders is None:
            return server.score.remote(groups)
        return server.score.remote(groups, [self._rating[item][1] for item in items])

    def _name(self, number: int) -> str:
        group = self._ordered[number]
        return f"reply {group.replies[0].index} to prompt {group.prompt.id}"

    def score(self, groups: list[ReplyGroup]) -> list[list[Scorecard]]:
        """Cards by group and reply, in the order given."""
        if self.decoders is None:
            return self._actor_pool.run(
                [f"prompt {group.prompt.id}" for group in groups],
                lambda server, items: server.score.remote([groups[i] for i in items]),
                f"scoring {len(groups)} groups",
            )
        numbers = [[self.order(group.prompt, reply) for reply in group.replies] for group in groups]
        while any(number in self._ordered for row in numbers for number in row):
            poll_once(self._company)
            self._hand_on()
        return [[self._cards.pop(number) for number in row] for row in numbers]

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """A card for each reply, which is there already, from the raters of these names alone, in the order given."""
        return self._actor_pool.run(
            [f"reply to {one.prompt.id}" for one in spoken],
            lambda server, items: server.rate.remote([spoken[i] for i in items], raters),
            f"rating {len(spoken)} replies",
        )

    def decode(self, replies: list[np.ndarray]) -> list[Waveform | None]:
        """Waveforms of a few replies."""
        if self.decoders is not None:
            return self.decoders.waveforms(replies)
        return self._actor_pool.run(
            _numbered(replies), lambda server, items: server.decode.remote([replies[i] for i in items]), "decoding"
        )

    def measure(self, function: str, replies: list[np.ndarray]) -> list[float]:
        """A function of a waveform, named "module:function", of each of a few replies that has speech."""
        sounds = [sound for sound in self.decode(replies) if sound is not None]
        return self._actor_pool.run(
            _numbered(sounds),
            lambda server, items: server.measure.remote(function, [sounds[i] for i in items]),
            "measuring",
        )

    def share_cache(self) -> pa.Table:
        """Every server, and those that are still to come, get what the judges answered any of them. Returns it.

        What a server was answered after that goes with it when it is lost or leaves, and is asked again.
        """
        before = [] if self._answers is None else [ray.get(self._answers, timeout=self._start_seconds)]
        found = self._everybody(lambda server: server.cache_entries.remote(), "handing over the judges' answers")
        table = merge_answers([*before, *found.values()], MOST_ANSWERS)
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
        if table.num_rows and self._actor_pool.names:
            self._everybody(lambda server: server.load_cache.remote(self._answers), "taking the judges' answers")

    def counters(self) -> dict[str, dict[str, float]]:
        """What happened with each remote rater since the start of the run, all servers together; none goes down."""
        found = self._everybody(lambda server: server.counters.remote(), "counting")
        alone: Counter[str] = Counter()
        for name, (born, by_rater, left) in found.items():
            self._counters[name, born] = by_rater
            alone.update({rater: int(is_left) for rater, is_left in left.items()})
        self.left_alone = dict(alone)
        return add_derived_scores(self._counters.values())

    def _everybody(self, call: Callable[[Any], ray.ObjectRef], doing: str) -> dict[str, Any]:
        """Asks every server that is up. Returns their answers by name, without those of servers lost meanwhile."""
        found: dict[str, Any] = {}
        self._actor_pool.update_all(WeightUpdateRequest(call=call, check=found.__setitem__, doing=doing))
        return found


def _numbered(replies: Sequence[Any]) -> list[str]:
    return [f"reply {number}" for number in range(1, len(replies) + 1)]
