"""The raters: each is built as a reward server builds it, and asked about one example."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from configs.schema import Config, RewardFunctionSection
from controller.checkpoint_checks import check_rater
from deploy.preflight.finding import CheckReporter, Finding
from reward.llm_judges.prompts import NO_SOUND
from reward.remote.client import FailureReason, RemoteJudge
from reward.server import JUDGES_SHARE, ClassSpec, score_replies
from reward.types import MissingScore, Rater, SpokenReply
from speech.codecs.base import Codec
from speech.types import Demonstration, Finish, Prompt, Reply
from speech.vocabulary import Vocabulary

RATER = CheckReporter("rater")
PATIENCE = 60.0
"""Seconds for one example, retries of a judge included."""
PAGE = "see docs/own-judge.md"
REMEDIES: dict[str, str] = {
    FailureReason.TIMEOUT: "see whether it is up and how long it takes; raise the rater's `timeout` if it needs longer",
    FailureReason.CONNECTION: "see whether `url` is right and whether this machine may reach it",
    FailureReason.SERVER: "look into the judge's own log",
    FailureReason.LIMITED: "lower `concurrency` of the rater or reward.num_servers, or raise the limit at the judge",
    FailureReason.REFUSED: "see whether `url` is right and whether the key in the variable `api_key_env` is good",
    FailureReason.NOT_UNDERSTOOD: "let it answer with a JSON object with the number `score`; see docs/own-judge.md",
    FailureReason.NOT_A_NUMBER: "let it answer with a number, not with words",
    FailureReason.OUT_OF_RANGE: "set `lowest` and `highest` of the rater to the judge's scale",
    NO_SOUND: "let `sounds` of the rater be the folder of the prompts' file, and the fact name a file below it",
    FailureReason.OTHER_VERSION: "set `version` of the rater to the judge's",
}
"""By the reason of a missing score."""


@dataclass(frozen=True, kw_only=True)
class ExampleReply:
    """A demonstration as a reply that a server would rate."""

    spoken: SpokenReply
    own: bool
    """Whether the prompt is the demonstration's own."""


def example_reply(
    prompts: list[Prompt], demonstration: Demonstration, vocabulary: Vocabulary, codec: Codec
) -> ExampleReply:
    """The demonstration as a reply to its prompt, or to the first one when its own is not among them."""
    own = next((prompt for prompt in prompts if prompt.id == demonstration.prompt_id), None)
    prompt, ids = own or prompts[0], demonstration.reply_ids
    reply = Reply(
        prompt_id=prompt.id,
        index=0,
        token_ids=ids,
        channels=vocabulary.channels(ids),
        logps=np.zeros(len(ids), dtype=np.float32),
        weight_version=0,
        finish=Finish.STOP,
        defect=None,
    )
    sound = codec.decode(vocabulary.codes(ids))
    spoken = SpokenReply(prompt=prompt, reply=reply, text=vocabulary.text(ids), waveform=sound)
    return ExampleReply(spoken=spoken, own=own is not None)


def check_raters(config: Config, one: ExampleReply) -> Iterator[Finding]:
    """Asks each about the example."""
    for rater in config.reward.functions:
        yield from check_rater_answers(config, rater, one)


def check_rater_answers(config: Config, named: RewardFunctionSection, one: ExampleReply) -> Iterator[Finding]:
    """Builds a rater and asks it about the example."""
    try:
        check_rater(named)
        rater: Rater = ClassSpec(target=named.target, kwargs=dict(named.kwargs), name=named.name).build()
        if rater.name != named.name:
            raise InputError(f"reward.functions: {named.target} calls its score {rater.name!r}, not {named.name!r}")
        version = rater.version
    except InputError as error:
        yield RATER.error(str(error), PAGE)
        return
    except Exception as error:  # whatever the user's own code raises; its words may hold a key
        yield RATER.error(f"{named.name}: {named.target} cannot be built: it raises {type(error).__name__}", PAGE)
        return
    started = time.perf_counter()
    (card,) = score_replies([rater], [one.spoken], min(PATIENCE, config.reward.score_timeout_s))
    seconds = time.perf_counter() - started
    score = card.scores[named.name]
    about = f"the demonstration of {one.spoken.reply.prompt_id}, {one.spoken.text!r:.60}"
    if isinstance(score, MissingScore):
        note = card.details.get(f"{named.name}_error", "")
        said = f"{named.name}: {version} gives no score for {about}: {score.reason}{f' ({note})' if note else ''}"
        if score.fault == "rater":
            yield RATER.error(said, REMEDIES.get(score.reason, PAGE))
        else:
            yield RATER.warning(said, "see whether that is so; most demonstrations should have a score")
        return
    reason = card.details.get(f"{named.name}_reason", "")
    saying = f", saying {reason!r:.80}" if reason else ""
    yield RATER.fine(f"{named.name}: {version} gives {score:g} for {about}{saying}, in {seconds:.2g} s")
    yield from check_score(config, named.name, score)
    if isinstance(rater, RemoteJudge):
        yield from check_pace(config, named.name, seconds, rater.settings.concurrency)


def check_score(config: Config, name: str, score: float) -> Iterator[Finding]:
    """The scale that λ is measured on, of a rater that counts in the total."""
    low, high = config.reward.score_min, config.reward.score_max
    if name in config.reward.weights and not low <= score <= high:
        yield RATER.warning(
            f"{name}: {score:g} is outside reward.score_min = {low:g} to reward.score_max = {high:g}, the scale that "
            "λ is measured on",
            "set reward.score_min, reward.score_max and mix_ratio.gate_threshold to the raters' scale",
        )


def check_pace(config: Config, name: str, seconds: float, concurrency: int) -> Iterator[Finding]:
    """Whether a judge that takes so long for one reply can rate an iteration in time."""
    at_once = config.reward.num_servers * concurrency
    needed, given = -(-config.replies // at_once) * seconds, JUDGES_SHARE * config.reward.score_timeout_s
    if needed > given:
        yield RATER.warning(
            f"{name}: {config.replies} replies an iteration, {at_once} at once, take {needed:.0f} s at {seconds:.2g} s "
            f"each; after {given:.0f} s, {JUDGES_SHARE:g} of reward.score_timeout_s, it is not waited for",
            "raise `concurrency` of the rater, reward.num_servers or reward.score_timeout_s",
        )
