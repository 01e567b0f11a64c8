"""Decoders: Ray actors that turn speech tokens into sound for the reward servers, and their pool.

    reply ──▶ decoder pool ──sound──▶ reward server ──▶ card

With decoders the servers hold no codec: speech decoders that need a GPU, and raters that do not, come in numbers of
their own. A sound stays in Ray's object store where it was made, and goes to the server that rates it; the controller
hands on references. They belong to the controller, so that a decoder may die when its work is done; a sound that is
lost with its node is made again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from cluster.actor_pool import ActorPool, SpeechPool
from cluster.monitored_actor import MonitoredActor
from cluster.placement import Placement
from cluster.pool_calls import ActorPoolConfig
from cluster.task_queue import MAX_ATTEMPTS, TaskQueue
from cluster.waiting import FETCH_TIMEOUT_S, CallTimeout
from speech.audio import Waveform
from speech.codecs.base import Codec
from speech.families import Family
from speech.registry import ClassSpec, build_codec
from speech.vocabulary import Vocabulary

SHARE = 4
"""Replies that a decoder is lent at once: they come back together, and servers wait for the first of them."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    decoders: int
    needs: Mapping[str, float]
    """Ray's resources of each decoder."""
    start_seconds: float


@dataclass(frozen=True)
class DecodeFailed:
    """In the place of a sound, or of what would be known of it: it is lost, and must be decoded again."""

    reason: str


def audio_of(token_ids: np.ndarray, vocabulary: Vocabulary, codec: Codec) -> Waveform | None:
    """The waveform of the speech tokens among ids [T], or None when there are none."""
    codes = vocabulary.codes(token_ids)
    return codec.decode(codes) if len(codes) else None


def fetch_audio(sounds: Sequence[ray.ObjectRef | None]) -> list[Waveform | DecodeFailed | None]:
    """Sounds by their references; of a reply without speech there is none."""
    wanted = [sound for sound in sounds if sound is not None]
    try:
        came: list[Any] = ray.get(wanted, timeout=FETCH_TIMEOUT_S)
    except RayError:
        came = [_one(sound) for sound in wanted]
    found = iter(came)
    return [None if sound is None else _own(next(found)) for sound in sounds]


def _one(sound: ray.ObjectRef) -> Waveform | DecodeFailed:
    try:
        return ray.get(sound, timeout=FETCH_TIMEOUT_S)
    except RayError as error:  # with the node that had it
        return DecodeFailed(f"{type(error).__name__}: {error}".partition("\n")[0])


def _own(sound: Waveform | DecodeFailed) -> Waveform | DecodeFailed:
    """Ray's store hands out arrays that cannot be written to; a rater may want to."""
    return sound if isinstance(sound, DecodeFailed) else Waveform(sound.samples.copy(), sound.rate)


class SpeechDecoder(MonitoredActor):
    """Holds the codec, and nothing of the raters."""

    def __init__(self, checkpoint: str, codec: ClassSpec, family: Family) -> None:
        """checkpoint: for its tokenizer."""
        super().__init__()
        self._vocabulary = Vocabulary.from_checkpoint(Path(checkpoint), family.tokens)
        self._codec = build_codec(codec.use, codec.arguments)

    def version(self) -> str:
        """Of the codec."""
        return self._codec.version

    def decode(self, replies: list[np.ndarray]) -> list[Any]:
        """Of ids [T] of each reply: first a list that says which have speech, then the waveform of each or None. To be
        asked for as so many objects, so that sounds can be handed on without being fetched."""
        sounds = [audio_of(ids, self._vocabulary, self._codec) for ids in replies]
        return [[sound is not None for sound in sounds], *sounds]


class DecoderPool(SpeechPool):
    """Decoders by name. One that dies is replaced, and what it was decoding is decoded by another."""

    def __init__(
        self,
        settings: DecoderConfig,
        *,
        checkpoint: str,
        codec: ClassSpec,
        family: Family,
        work_seconds: float,
        beat_seconds: float,
        tell: Callable[..., None],
        company: list[ActorPool] | None = None,
    ) -> None:
        """work_seconds: deadline for a share of replies. beat_seconds: how long a decoder may give no sign of life.
        tell: takes events, a kind and fields. company: see `ActorPool`."""
        threads = str(max(1, int(settings.needs.get("CPU", 1))))
        environment = {"env_vars": {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}}

        def make(name: str, place: Placement) -> Any:
            remote = ray.remote(SpeechDecoder).options(runtime_env=environment, **place.options())
            return remote.remote(checkpoint, codec, family)

        self._actor_pool = ActorPool(
            ActorPoolConfig(
                role="decoder",
                num_replicas=settings.decoders,
                start_timeout_s=settings.start_seconds,
                update_timeout_s=settings.start_seconds,
                task_timeout_s=work_seconds,
                heartbeat_timeout_s=beat_seconds,
                needs_update=False,
                resources=settings.needs,
            ),
            create=make,
            warm_up=lambda decoder: decoder.version.remote(),
            emit_event=tell,
            pools=company,
        )
        self._ordered: dict[int, np.ndarray] = {}
        """Token ids of what is not decoded yet, by number."""
        self._made: dict[int, ray.ObjectRef] = {}
        """Where the sound of each will be, or is: of whoever was asked last."""
        self._queue = TaskQueue(
            partial(self._ask, replies=self._ordered, made=self._made), "decoding replies", max_batch=SHARE
        )
        self._actor_pool.add_queue(self._queue)

    def begin(self, *, strict: bool = True) -> None:
        """As `ActorPool.begin`."""
        self._actor_pool.begin(strict=strict)

    def start(self, *, strict: bool = True) -> str:
        """As `ActorPool.start`. Returns the version of the codec."""
        return next(iter(self._actor_pool.start(strict=strict).values()))

    def order(self, name: str, token_ids: np.ndarray) -> int:
        """A reply to be decoded by whoever is free. name: for messages. Returns its number."""
        number = self._queue.add(name)
        self._ordered[number] = token_ids
        return number

    def sounds(self) -> list[tuple[int, ray.ObjectRef | None]]:
        """Those that were made since the last call, each with the number of its order; None without speech."""
        found = []
        for number, spoken in self._queue.leases.collect().items():
            del self._ordered[number]
            made = self._made.pop(number)
            found.append((number, made if spoken else None))
        return found

    def abandon(self) -> None:
        """Gives up everything that was ordered and is not there."""
        self._queue.cancel()
        self._queue.leases.collect()
        self._ordered.clear()
        self._made.clear()

    def waveforms(self, replies: Sequence[np.ndarray]) -> list[Waveform | None]:
        """Has these decoded, waits for them and fetches them; None without speech. Those that are lost on the way are
        decoded again."""
        found: dict[int, Waveform | None] = {}
        for _ in range(MAX_ATTEMPTS):
            places = [place for place in range(len(replies)) if place not in found]
            if not places:
                break
            made: dict[int, ray.ObjectRef] = {}
            asked = {item: replies[place] for item, place in enumerate(places)}
            spoken = self._actor_pool.run(
                [f"reply {place + 1}" for place in places],
                partial(self._ask, replies=asked, made=made),
                f"decoding {len(places)} replies",
            )
            sounds = fetch_audio([made[item] if speaks else None for item, speaks in enumerate(spoken)])
            found |= {place: s for place, s in zip(places, sounds, strict=True) if not isinstance(s, DecodeFailed)}
        if len(found) < len(replies):
            raise CallTimeout(f"the sound of {len(replies) - len(found)} replies was lost {MAX_ATTEMPTS} times")
        return [found[place] for place in range(len(replies))]

    def _ask(
        self,
        decoder: Any,
        items: list[int],
        replies: Mapping[int, np.ndarray],
        made: dict[int, ray.ObjectRef],
    ) -> ray.ObjectRef:
        """Returns the reference to what is known when all of these are decoded; notes those to the sounds."""
        asked = decoder.decode.options(num_returns=1 + len(items))
        known, *sounds = asked.remote([replies[item] for item in items])
        made.update(zip(items, sounds, strict=True))
        return known
