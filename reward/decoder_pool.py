"""A pool of Ray actors that decode speech tokens to audio for the reward servers.

    reply ──▶ decoder pool ──audio──▶ reward server ──▶ scorecard

With decoders the reward servers hold no codec, so GPU decoders and CPU raters scale separately. Audio stays in Ray's
object store on the node that made it and goes straight to the server that rates it; the controller passes references.
The controller owns the objects, so a decoder may die after its work is done. Audio lost with its node is decoded
again.
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
"""Replies per call to a decoder. They return together, so a larger number delays the first of them."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    decoders: int
    needs: Mapping[str, float]
    """Ray resources of each decoder."""
    start_seconds: float


@dataclass(frozen=True)
class DecodeFailed:
    """Placeholder for audio, or for the scorecard of it, that was lost and must be decoded again."""

    reason: str


def decode_audio(token_ids: np.ndarray, vocabulary: Vocabulary, codec: Codec) -> Waveform | None:
    """Return the waveform of the speech tokens among ids [T], or None without speech tokens."""
    codes = vocabulary.codes(token_ids)
    return codec.decode(codes) if len(codes) else None


def fetch_audio(refs: Sequence[ray.ObjectRef | None]) -> list[Waveform | DecodeFailed | None]:
    """Fetch audio by reference; None stays None (a reply without speech)."""
    present = [ref for ref in refs if ref is not None]
    try:
        values: list[Any] = ray.get(present, timeout=FETCH_TIMEOUT_S)
    except RayError:
        values = [_fetch_one(ref) for ref in present]
    fetched = iter(values)
    return [None if ref is None else _writable(next(fetched)) for ref in refs]


def _fetch_one(ref: ray.ObjectRef) -> Waveform | DecodeFailed:
    try:
        return ray.get(ref, timeout=FETCH_TIMEOUT_S)
    except RayError as error:  # lost with its node
        return DecodeFailed(f"{type(error).__name__}: {error}".partition("\n")[0])


def _writable(audio: Waveform | DecodeFailed) -> Waveform | DecodeFailed:
    """Copy the samples: arrays from Ray's object store are read-only, and a rater may write to them."""
    return audio if isinstance(audio, DecodeFailed) else Waveform(audio.samples.copy(), audio.rate)


class SpeechDecoder(MonitoredActor):
    """Hold the codec and decode replies; no raters."""

    def __init__(self, checkpoint: str, codec: ClassSpec, family: Family) -> None:
        """checkpoint: source of the tokenizer."""
        super().__init__()
        self._vocabulary = Vocabulary.from_checkpoint(Path(checkpoint), family.tokens)
        self._codec = build_codec(codec.target, codec.kwargs)

    def version(self) -> str:
        """Return the version of the codec."""
        return self._codec.version

    def decode(self, replies: list[np.ndarray]) -> list[Any]:
        """Return a list of flags that say which replies have speech, then one waveform or None per reply.

        Call it with `num_returns=1 + len(replies)`: each waveform is then an object of its own, which the caller can
        pass on without fetching it.
        """
        audio = [decode_audio(ids, self._vocabulary, self._codec) for ids in replies]
        return [[waveform is not None for waveform in audio], *audio]


class DecoderPool(SpeechPool):
    """A pool of decoders. A dead decoder is replaced and its replies are decoded by another."""

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
        """Set up the pool without starting it.

        Args:
            work_seconds: Time limit for one call of `SHARE` replies.
            beat_seconds: Heartbeat timeout of a decoder.
            tell: Called with each event: a kind and fields.
            company: See `ActorPool`.
        """
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
        self._pending: dict[int, np.ndarray] = {}
        """Token ids of replies that are not decoded yet, by task number."""
        self._audio_refs: dict[int, ray.ObjectRef] = {}
        """Reference to the audio of each task, from the latest call."""
        self._tasks = TaskQueue(
            partial(self._call, replies=self._pending, refs=self._audio_refs), "decoding replies", max_batch=SHARE
        )
        self._actor_pool.add_queue(self._tasks)

    def begin(self, *, strict: bool = True) -> None:
        """See `ActorPool.begin`."""
        self._actor_pool.begin(strict=strict)

    def start(self, *, strict: bool = True) -> str:
        """See `ActorPool.start`. Return the version of the codec."""
        return next(iter(self._actor_pool.start(strict=strict).values()))

    def submit(self, name: str, token_ids: np.ndarray) -> int:
        """Queue a reply for decoding. Return its task number. name: shown in messages."""
        number = self._tasks.add(name)
        self._pending[number] = token_ids
        return number

    def collect(self) -> list[tuple[int, ray.ObjectRef | None]]:
        """Return (task number, audio reference) of the tasks finished since the last call; None without speech."""
        finished = []
        for number, has_speech in self._tasks.leases.collect().items():
            del self._pending[number]
            ref = self._audio_refs.pop(number)
            finished.append((number, ref if has_speech else None))
        return finished

    def abort_all(self) -> None:
        """Cancel all unfinished tasks and drop finished ones."""
        self._tasks.cancel()
        self._tasks.leases.collect()
        self._pending.clear()
        self._audio_refs.clear()

    def decode(self, replies: Sequence[np.ndarray]) -> list[Waveform | None]:
        """Decode replies and wait for their audio; None without speech. Lost audio is decoded again."""
        decoded: dict[int, Waveform | None] = {}
        for _ in range(MAX_ATTEMPTS):
            missing = [index for index in range(len(replies)) if index not in decoded]
            if not missing:
                break
            refs: dict[int, ray.ObjectRef] = {}
            batch = {item: replies[index] for item, index in enumerate(missing)}
            flags = self._actor_pool.run(
                [f"reply {index + 1}" for index in missing],
                partial(self._call, replies=batch, refs=refs),
                f"decoding {len(missing)} replies",
            )
            audio = fetch_audio([refs[item] if has_speech else None for item, has_speech in enumerate(flags)])
            decoded |= {index: a for index, a in zip(missing, audio, strict=True) if not isinstance(a, DecodeFailed)}
        if len(decoded) < len(replies):
            raise CallTimeout(f"the audio of {len(replies) - len(decoded)} replies was lost {MAX_ATTEMPTS} times")
        return [decoded[index] for index in range(len(replies))]

    def _call(
        self,
        decoder: Any,
        items: list[int],
        replies: Mapping[int, np.ndarray],
        refs: dict[int, ray.ObjectRef],
    ) -> ray.ObjectRef:
        """Call a decoder with these items. Store the audio references in `refs`; return the reference to the flags."""
        method = decoder.decode.options(num_returns=1 + len(items))
        flags, *audio_refs = method.remote([replies[item] for item in items])
        refs.update(zip(items, audio_refs, strict=True))
        return flags
