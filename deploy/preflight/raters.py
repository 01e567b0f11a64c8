"""Checks of the raters: each is built as a reward server builds it, and scores one example."""

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
SCORE_TIMEOUT_S = 60.0
"""Deadline for one example, including a judge's retries."""
PAGE = "see docs/own-judge.md"
REMEDIES: dict[str, str] = {
    FailureReason.TIMEOUT: "check that the judge is up and how long it takes; raise `timeout` of the rater if needed",
    FailureReason.CONNECTION: "check `url`, and that this machine can reach it",
    FailureReason.SERVER: "read the judge's own log",
    FailureReason.LIMITED: "lower `concurrency` of the rater or reward.num_servers, or raise the limit at the judge",
    FailureReason.REFUSED: "check `url`, and the key in the variable that `api_key_env` names",
    FailureReason.NOT_UNDERSTOOD: "make it answer with a JSON object with the number `score`; see docs/own-judge.md",
    FailureReason.NOT_A_NUMBER: "make it answer with a number instead of words",
    FailureReason.OUT_OF_RANGE: "set `lowest` and `highest` of the rater to the judge's scale",
    NO_SOUND: "set `sounds` of the rater to the folder of the prompts' file, and the fact to a file below it",
    FailureReason.OTHER_VERSION: "set `version` of the rater to the judge's",
}
"""Remedies by the reason of a missing score."""


@dataclass(frozen=True, kw_only=True)
class ExampleReply:
    """A demonstration in the form of a generated reply."""

    spoken: SpokenReply
    own: bool
    """True if the prompt is the demonstration's own."""


def example_reply(
    prompts: list[Prompt], demonstration: Demonstration, vocabulary: Vocabulary, codec: Codec
) -> ExampleReply:
    """Return the demonstration as a reply to its own prompt, or to the first prompt if its own is missing."""
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


def check_raters(config: Config, example: ExampleReply) -> Iterator[Finding]:
    """Score the example with each rater."""
    for rater in config.reward.functions:
        yield from check_rater_answers(config, rater, example)


def check_rater_answers(config: Config, named: RewardFunctionSection, example: ExampleReply) -> Iterator[Finding]:
    """Build a rater and score the example with it."""
    try:
        check_rater(named)
        rater: Rater = ClassSpec(target=named.target, kwargs=dict(named.kwargs), name=named.name).build()
        if rater.name != named.name:
            raise InputError(
                f"reward.functions: {named.target} names its score {rater.name!r}; use this name instead of "
                f"{named.name!r}"
            )
        version = rater.version
    except InputError as error:
        yield RATER.error(str(error), PAGE)
        return
    except Exception as error:  # custom code may raise anything; its message may contain a key
        yield RATER.error(f"{named.name}: {named.target} cannot be built: {type(error).__name__} was raised", PAGE)
        return
    started = time.perf_counter()
    (card,) = score_replies([rater], [example.spoken], min(SCORE_TIMEOUT_S, config.reward.score_timeout_s))
    seconds = time.perf_counter() - started
    score = card.scores[named.name]
    subject = f"the demonstration of {example.spoken.reply.prompt_id}, {example.spoken.text!r:.60}"
    if isinstance(score, MissingScore):
        note = card.details.get(f"{named.name}_error", "")
        text = f"{named.name}: {version} gives no score for {subject}: {score.reason}{f' ({note})' if note else ''}"
        if score.fault == "rater":
            yield RATER.error(text, REMEDIES.get(score.reason, PAGE))
        else:
            yield RATER.warning(text, "check the demonstration; most demonstrations should have a score")
        return
    reason = card.details.get(f"{named.name}_reason", "")
    explanation = f", saying {reason!r:.80}" if reason else ""
    yield RATER.fine(f"{named.name}: {version} gives {score:g} for {subject}{explanation}, in {seconds:.2g} s")
    yield from check_score(config, named.name, score)
    if isinstance(rater, RemoteJudge):
        yield from check_pace(config, named.name, seconds, rater.settings.concurrency)


def check_score(config: Config, name: str, score: float) -> Iterator[Finding]:
    """Check that a score of the total is on the scale that λ uses."""
    low, high = config.reward.score_min, config.reward.score_max
    if name in config.reward.weights and not low <= score <= high:
        yield RATER.warning(
            f"{name}: {score:g} is outside reward.score_min = {low:g} to reward.score_max = {high:g}, the scale of λ",
            "set reward.score_min, reward.score_max and mix_ratio.gate_threshold to the raters' scale",
        )


def check_pace(config: Config, name: str, seconds: float, concurrency: int) -> Iterator[Finding]:
    """Check that a judge can score an iteration in time. `seconds`: its time for one reply."""
    parallel = config.reward.num_servers * concurrency
    needed, deadline = -(-config.replies // parallel) * seconds, JUDGES_SHARE * config.reward.score_timeout_s
    if needed > deadline:
        yield RATER.warning(
            f"{name}: {config.replies} replies an iteration, {parallel} at a time, take {needed:.0f} s at "
            f"{seconds:.2g} s each; the deadline is {deadline:.0f} s, {JUDGES_SHARE:g} of reward.score_timeout_s",
            "raise `concurrency` of the rater, reward.num_servers or reward.score_timeout_s",
        )
