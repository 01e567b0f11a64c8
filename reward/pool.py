"""The pool of reward servers and their decoders: submit replies, collect scorecards."""

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
from reward.server import RewardServer, RewardServerConfig, sum_counters
from reward.types import Scorecard, SpokenReply
from speech.audio import Waveform
from speech.families import Family
from speech.types import Prompt, Reply, ReplyGroup

MAX_SAVED_ANSWERS = 200_000
"""Judge answers kept in a checkpoint, about 20 MB; least recently used ones are dropped first."""


class RewardPool(SpeechPool):
    """A pool of reward servers, with decoders if configured. A dead server is replaced and its replies are rated by
    another."""

    def __init__(
        self,
        settings: RewardServerConfig,
        family: Family,
        tell: Callable[..., None],
        company: list[ActorPool] | None = None,
    ) -> None:
        """Set up the pool without starting it.

        Args:
            tell: Called with each event: a kind and fields.
            company: See `ActorPool`.
        """
        self._company = [] if company is None else company
        self.decoders = self._build_decoders(settings, family, tell, self._company)
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}

        def make(name: str, place: Placement) -> Any:
            remote = ray.remote(RewardServer).options(runtime_env=environment, **place.options())
            return remote.remote(settings, family, self._answers)

        self._start_seconds = settings.start_seconds
        self._answers: ray.ObjectRef | None = None
        """Answers of remote raters, as last saved or loaded; new servers start with them."""
        self._counters: dict[tuple[str, float], dict[str, dict[str, float]]] = {}
        """Latest counters by name and start time of a server, so that dead servers still count."""
        self.circuit_open: dict[str, int] = {}
        """Servers whose circuit to a remote rater is open, by rater, as of the last call of `counters`."""
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
        self._pending: dict[int, ReplyGroup] = {}
        """Submissions without a scorecard yet, by number: a prompt with one reply each."""
        self._numbers = count()
        self._decoding: dict[int, int] = {}
        """Number of each submission in the decoder pool, by decoding task."""
        self._rating: dict[int, tuple[int, ray.ObjectRef | None]] = {}
        """Number and audio reference (with decoders) of each submission in the rating queue, by rating task."""
        self._lost: Counter[int] = Counter()
        """Times that the audio of each submission was lost."""
        self._cards: dict[int, Scorecard] = {}
        """Scorecards that were not collected yet."""
        self._tasks = TaskQueue(self._call_server, "scoring replies")
        self._actor_pool.add_queue(self._tasks)

    @staticmethod
    def _build_decoders(
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
        """Begin to start every server. strict: whether one failure aborts the start."""
        if self.decoders is not None:
            self.decoders.begin(strict=strict)
        self._actor_pool.begin(strict=strict)

    def start(self, *, strict: bool = True) -> dict[str, str]:
        """Wait for every server. Return the versions of raters and codec. strict: whether one failure aborts the
        start."""
        codec = {} if self.decoders is None else {"codec": self.decoders.start(strict=strict)}
        return next(iter(self._actor_pool.start(strict=strict).values())) | codec

    def submit(self, prompt: Prompt, reply: Reply) -> int:
        """Queue a reply for decoding and rating. Return its number."""
        number = next(self._numbers)
        self._pending[number] = ReplyGroup(prompt=prompt, replies=[reply])
        self._route(number)
        return number

    def collect(self) -> list[tuple[int, Scorecard]]:
        """Return (number, scorecard) of the replies finished since the last call."""
        self._handle_results()
        finished, self._cards = list(self._cards.items()), {}
        return finished

    def abort_all(self) -> None:
        """Cancel all unfinished replies and drop finished ones."""
        if self.decoders is not None:
            self.decoders.abort_all()
        self._tasks.cancel()
        self._tasks.leases.collect()
        for state in (self._pending, self._decoding, self._rating, self._lost, self._cards):
            state.clear()

    def stop(self) -> None:
        if self.decoders is not None:
            self.decoders.stop()
        super().stop()

    def _handle_results(self) -> None:
        """Take what decoders and servers finished since the last call: queue audio for rating, store scorecards."""
        if self.decoders is not None:
            for item, audio_ref in self.decoders.collect():
                self._queue_rating(self._decoding.pop(item), audio_ref)
        for item, [card] in self._tasks.leases.collect().items():
            number, _ = self._rating.pop(item)
            if not isinstance(card, DecodeFailed):
                self._cards[number] = card
                del self._pending[number]
                self._lost.pop(number, None)
                continue
            self._lost[number] += 1
            if self._lost[number] >= MAX_ATTEMPTS:
                raise CallTimeout(f"the audio of {self._name(number)} was lost {MAX_ATTEMPTS} times: {card.reason}")
            self._route(number)

    def _route(self, number: int) -> None:
        """Send a submission to the decoders, or straight to the rating queue without decoders."""
        if self.decoders is None:
            self._queue_rating(number, None)
            return
        [reply] = self._pending[number].replies
        self._decoding[self.decoders.submit(self._name(number), reply.token_ids)] = number

    def _queue_rating(self, number: int, audio_ref: ray.ObjectRef | None) -> None:
        self._rating[self._tasks.add(self._name(number))] = number, audio_ref

    def _call_server(self, server: Any, items: list[int]) -> ray.ObjectRef:
        groups = [self._pending[self._rating[item][0]] for item in items]
        if self.decoders is None:
            return server.score.remote(groups)
        return server.score.remote(groups, [self._rating[item][1] for item in items])

    def _name(self, number: int) -> str:
        group = self._pending[number]
        return f"reply {group.replies[0].index} to prompt {group.prompt.id}"

    def score(self, groups: list[ReplyGroup]) -> list[list[Scorecard]]:
        """Return a scorecard per reply, by group, in the order given."""
        if self.decoders is None:
            return self._actor_pool.run(
                [f"prompt {group.prompt.id}" for group in groups],
                lambda server, items: server.score.remote([groups[i] for i in items]),
                f"scoring {len(groups)} groups",
            )
        numbers = [[self.submit(group.prompt, reply) for reply in group.replies] for group in groups]
        while any(number in self._pending for row in numbers for number in row):
            poll_once(self._company)
            self._handle_results()
        return [[self._cards.pop(number) for number in row] for row in numbers]

    def rate(self, spoken: list[SpokenReply], raters: list[str]) -> list[Scorecard]:
        """Return a scorecard per decoded reply, from the named raters only, in the order given."""
        return self._actor_pool.run(
            [f"reply to {reply.prompt.id}" for reply in spoken],
            lambda server, items: server.rate.remote([spoken[i] for i in items], raters),
            f"rating {len(spoken)} replies",
        )

    def decode(self, replies: list[np.ndarray]) -> list[Waveform | None]:
        """Decode a few replies. A reply without speech gives None."""
        if self.decoders is not None:
            return self.decoders.decode(replies)
        return self._actor_pool.run(
            _task_names(replies), lambda server, items: server.decode.remote([replies[i] for i in items]), "decoding"
        )

    def measure(self, function: str, replies: list[np.ndarray]) -> list[float]:
        """Apply a function of a waveform, named "module:function", to each of a few replies that has speech."""
        waveforms = [waveform for waveform in self.decode(replies) if waveform is not None]
        return self._actor_pool.run(
            _task_names(waveforms),
            lambda server, items: server.measure.remote(function, [waveforms[i] for i in items]),
            "measuring",
        )

    def share_cache(self) -> pa.Table:
        """Merge the judge answers of all servers and give them to every current and future server. Return them.

        Answers that a server gets later are lost with that server, and judges are asked again.
        """
        before = [] if self._answers is None else [ray.get(self._answers, timeout=self._start_seconds)]
        tables = self._call_all(lambda server: server.cache_entries.remote(), "collecting judge answers")
        table = merge_answers([*before, *tables.values()], MAX_SAVED_ANSWERS)
        self._distribute(table)
        return table

    def save_cache(self, path: Path) -> int:
        """Share the judge answers and write them to one Parquet file. Return the number of answers."""
        table = self.share_cache()
        write_answers(path, table)
        return table.num_rows

    def load_cache(self, path: Path) -> int:
        """Give the answers of a file to every current and future server; works before and after `start`.

        Return the number of answers. Raise InputError for a file of another format.
        """
        table = read_answers(path)
        self._distribute(table)
        return table.num_rows

    def _distribute(self, table: pa.Table) -> None:
        self._answers = ray.put(table)
        if table.num_rows and self._actor_pool.names:
            self._call_all(lambda server: server.load_cache.remote(self._answers), "loading judge answers")

    def counters(self) -> dict[str, dict[str, float]]:
        """Return the counters of each remote rater since the start of the run, summed over servers; monotonic."""
        answers = self._call_all(lambda server: server.counters.remote(), "reading judge counters")
        open_circuits: Counter[str] = Counter()
        for name, (started_at, by_rater, circuits) in answers.items():
            self._counters[name, started_at] = by_rater
            open_circuits.update({rater: int(is_open) for rater, is_open in circuits.items()})
        self.circuit_open = dict(open_circuits)
        return sum_counters(self._counters.values())

    def _call_all(self, call: Callable[[Any], ray.ObjectRef], doing: str) -> dict[str, Any]:
        """Call every server that is up. Return the answers by name, without those of servers that died."""
        answers: dict[str, Any] = {}
        self._actor_pool.update_all(WeightUpdateRequest(call=call, check=answers.__setitem__, doing=doing))
        return answers


def _task_names(replies: Sequence[Any]) -> list[str]:
    return [f"reply {number}" for number in range(1, len(replies) + 1)]
