"""A reward server: the Ray actor that decodes replies and asks the raters. And its pool."""

import importlib
import math
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.waiting import gather
from reward.rater import Missing, Rater, Score, Scorecard, SpokenReply
from speech.errors import InputError
from speech.families import Family
from speech.records import Finish, Group, Prompt, Reply
from speech.vocabulary import Vocabulary


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
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name!r} cannot be loaded: {error}") from error


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    servers: int
    cpus: float
    checkpoint: str
    """For its tokenizer."""
    codec: Part
    """Loaded through `codec.load(path)`."""
    raters: tuple[Part, ...]
    start_seconds: float
    score_seconds: float
    """Deadline for scoring a batch."""


def unfit(reply: Reply) -> Missing | None:
    """Why a reply is not scored like a finished one (method §7, rule 5): truncated or malformed replies stay
    unscored."""
    if reply.finish == Finish.LENGTH:
        return Missing("truncated reply")
    if reply.finish == Finish.ABORTED:
        return Missing("aborted reply")
    if reply.defect is not None:
        return Missing("malformed reply")
    return None


def _checked(name: str, score: object) -> Score:
    """What a rater gave: a finite number or Missing. Anything else is a failure of the rater."""
    if isinstance(score, Missing):
        return score
    if isinstance(score, numbers.Real) and math.isfinite(score):
        return float(score)
    return Missing(f"{name} gave no finite number", fault="rater")


class RewardServer:
    """Scores groups. A rater that raises gives Missing, never a number (method §7, rule 1)."""

    def __init__(self, settings: ServerSettings, family: Family) -> None:
        self._vocabulary = Vocabulary.from_checkpoint(Path(settings.checkpoint), family.tokens)
        self._codec = load(settings.codec.use).load(Path(settings.codec.arguments["path"]))
        self._raters: list[Rater] = [part.build() for part in settings.raters]
        for part, rater in zip(settings.raters, self._raters, strict=True):
            if part.name and part.name != rater.name:
                raise InputError(f"reward.raters: {part.use} calls its score {rater.name!r}, not {part.name!r}")

    def versions(self) -> dict[str, str]:
        """Versions of the raters and the codec, for the records."""
        return {rater.name: rater.version for rater in self._raters} | {"codec": self._codec.version}

    def score(self, groups: list[Group]) -> list[list[Scorecard]]:
        """A card for each reply of each group."""
        return [[self._card(group.prompt, reply) for reply in group.replies] for group in groups]

    def decode(self, token_ids: np.ndarray):
        """The waveform of the speech tokens among ids [T], or None when there are none."""
        codes = self._vocabulary.codes(token_ids)
        return self._codec.decode(codes) if len(codes) else None

    def measure(self, function: str, replies: list[np.ndarray]) -> list[float]:
        """A function of a waveform, named "module:function", of each reply that has speech."""
        measured = load(function)
        waveforms = [self.decode(ids) for ids in replies]
        return [float(measured(waveform)) for waveform in waveforms if waveform is not None]

    def _card(self, prompt: Prompt, reply: Reply) -> Scorecard:
        waveform = self.decode(reply.token_ids)
        spoken = SpokenReply(prompt=prompt, reply=reply, text=self._vocabulary.text(reply.token_ids), waveform=waveform)
        reason = unfit(reply)
        scores: dict[str, Score] = {}
        details = {"text": spoken.text}
        for rater in self._raters:
            if reason is not None:
                scores[rater.name] = reason
                continue
            try:
                scores[rater.name] = _checked(rater.name, rater.rate(spoken))
                if hasattr(rater, "detail"):
                    details |= rater.detail(spoken)
            except Exception as error:  # whatever a rater raises, its score is missing and the run goes on
                scores[rater.name] = Missing(f"{rater.name} raised {type(error).__name__}", fault="rater")
                details[f"{rater.name}_error"] = str(error)
        return Scorecard(scores=scores, details=details, seconds=waveform.seconds if waveform else 0.0)


class RewardPool:
    """Reward servers by name; a batch is dealt out in contiguous shares."""

    def __init__(self, settings: ServerSettings, family: Family) -> None:
        self._settings = settings
        remote = ray.remote(RewardServer).options(
            num_cpus=settings.cpus, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}
        )
        self._servers: dict[str, Any] = {
            f"reward-{i}": remote.remote(settings, family) for i in range(settings.servers)
        }

    def start(self) -> dict[str, str]:
        """Waits for every server. Returns the versions of raters and codec."""
        answers = {name: server.versions.remote() for name, server in self._servers.items()}
        return next(iter(gather(answers, self._settings.start_seconds, "starting").values()))

    def score(self, groups: list[Group]) -> list[list[Scorecard]]:
        """Cards by group and reply, in the order given."""
        count, parts = len(groups), len(self._servers)
        bounds = [count * part // parts for part in range(parts + 1)]
        answers = {
            name: server.score.remote(groups[low:high])
            for (name, server), low, high in zip(self._servers.items(), bounds, bounds[1:], strict=False)
            if low < high
        }
        results = gather(answers, self._settings.score_seconds, f"scoring {count} groups")
        return [cards for part in results.values() for cards in part]

    def decode(self, replies: list[np.ndarray]) -> list:
        """Waveforms of a few replies, from one server."""
        name, server = next(iter(self._servers.items()))
        answers = {f"{name}, reply {i}": server.decode.remote(ids) for i, ids in enumerate(replies)}
        return list(gather(answers, self._settings.score_seconds, "decoding").values())

    def measure(self, function: str, replies: list[np.ndarray]) -> list[float]:
        """`RewardServer.measure`, on one server."""
        name, server = next(iter(self._servers.items()))
        return gather({name: server.measure.remote(function, replies)}, self._settings.score_seconds, "measuring")[name]

    def stop(self) -> None:
        for server in self._servers.values():
            ray.kill(server)
