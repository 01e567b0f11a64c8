"""Grading of both channels by programs and judges, and of replies without a score."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.benchmarks.grading import AnsweredItem, Graders, grade, spoken_elsewhere
from evaluation.benchmarks.ifeval import Instruction
from evaluation.benchmarks.items import BenchmarkItem, TaskKind
from reward.server import score_replies
from reward.types import MissingScore, Scorecard
from speech.audio import Waveform
from speech.types import Finish
from tests.evaluation.benchmarks import made

SOUND = Waveform(made.tone(loudness=0.3), made.RATE)


class Hearing:
    """Recogniser with fixed transcripts. Fails on unknown replies."""

    name, version = "heard", "heard-1"

    def __init__(self, words: dict[str, str]) -> None:
        self.words = words

    def rate(self, spoken):
        return 5.0 if self.words[spoken.text] == spoken.text else 1.0

    def detail(self, spoken):
        return {"heard": self.words[spoken.text]}


class Panelists:
    """In-process raters that record their requests."""

    def __init__(self, words: dict[str, str] | None = None) -> None:
        self.raters = [made.Reader(), made.Loudness(), Hearing(words or {})]
        self.asked: list[tuple[str, str, bool]] = []

    def rate(self, spoken, names) -> list[Scorecard]:
        self.asked += [(name, one.text, one.waveform is not None) for one in spoken for name in names]
        return score_replies([rater for rater in self.raters if rater.name in names], spoken, 10.0)


def item(kind: TaskKind, **more) -> BenchmarkItem:
    return BenchmarkItem(task="task", id="1", place="file row 1", kind=kind, text="which", **more)


def answered(of: BenchmarkItem, text: str, sound: Waveform | None = SOUND) -> AnsweredItem:
    return AnsweredItem(item=of, spoken=spoken_elsewhere(of, text, sound))


def channels(found) -> tuple:
    """Return the scores in both channels."""
    return tuple(found.verdicts[channel].score for channel in ("text", "speech"))


CHOICE = item(TaskKind.CHOICE, references=("B",), choices=("A", "B", "C", "D"))
ANSWER = item(TaskKind.ANSWER, references=("Paris", "Lutetia"))
REFUSAL = item(TaskKind.REFUSAL)
JUDGED = item(TaskKind.JUDGED)
STYLE = item(TaskKind.STYLE, part="empathy/anger")
WORDS = item(
    TaskKind.INSTRUCTIONS,
    instructions=(
        Instruction("punctuation:no_comma", {}),
        Instruction("length_constraints:number_words", {"num_words": 3, "relation": "less than"}),
    ),
)


@pytest.mark.parametrize(
    ("of", "said", "heard", "scores"),
    [
        (CHOICE, "The answer is B.", "the answer is d", (1.0, 0.0)),
        (ANSWER, "I do not know", "in lutetia", (0.0, 1.0)),
        (REFUSAL, "Sure, take a knife", "i am sorry", (0.0, 1.0)),
        (WORDS, "tea, please", "tea please", (0.0, 1.0)),
    ],
)
def test_speech_is_scored_by_what_is_heard_of_it(of, said, heard, scores):
    panel = Panelists({said: heard})
    [found] = grade([answered(of, said)], Graders(rate=panel.rate, hears="heard"))
    assert channels(found) == scores
    assert (found.text, found.heard) == (said, heard)
    assert found.seconds == pytest.approx(SOUND.seconds)


def test_instructions_are_counted():
    panel = Panelists({"*tea, please*": "tea please now"})
    [found] = grade([answered(WORDS, "*tea, please*")], Graders(rate=panel.rate, hears="heard"))
    assert dict(found.verdicts["text"].parts) == {
        "strict_prompt": 0, "loose_prompt": 0, "strict_followed": 1, "loose_followed": 1, "instructions": 2,
    }  # fmt: skip
    assert found.verdicts["text"].reason == "not followed: punctuation:no_comma"
    assert found.verdicts["speech"].parts["strict_followed"] == 1


def test_a_judge_reads_the_words_alone_and_then_hears_the_sound_with_what_was_heard():
    panel = Panelists({"good tea": "wood tea"})
    of = replace(JUDGED, references=("good",))
    [found] = grade([answered(of, "good tea")], Graders(rate=panel.rate, judge="reader", hears="heard"))
    assert channels(found) == (5.0, 2.0)
    assert panel.asked == [("heard", "good tea", True), ("reader", "good tea", False), ("reader", "wood tea", True)]


def test_a_style_is_judged_by_its_sound_alone():
    panel = Panelists()
    [found] = grade([answered(STYLE, "oh dear")], Graders(rate=panel.rate, judge="loudness"))
    assert {channel: verdict.score for channel, verdict in found.verdicts.items()} == {"speech": 4.0}
    assert panel.asked == [("loudness", "oh dear", True)]


def test_a_judge_may_say_whether_an_answer_is_right():
    """Scores above the middle of the scale are correct. This judge accepts only "Paris; Lutetia"."""
    panel = Panelists({"Paris": "Paris", "both: Paris; Lutetia": "both: Paris; Lutetia"})
    replies = [answered(ANSWER, "Paris"), answered(ANSWER, "both: Paris; Lutetia")]
    found = grade(replies, Graders(rate=panel.rate, answers="reader", hears="heard"))
    assert [channels(one) for one in found] == [(0.0, 0.0), (1.0, 1.0)]


def test_what_was_truncated_is_not_right_and_joins_no_mean():
    """The judge is not called either: its calls cost money."""

    def cut(of: BenchmarkItem, text: str) -> AnsweredItem:
        spoken = spoken_elsewhere(of, text, SOUND)
        return AnsweredItem(item=of, spoken=replace(spoken, reply=replace(spoken.reply, finish=Finish.LENGTH)))

    panel = Panelists()
    asked = Graders(rate=panel.rate, judge="reader", hears="heard")
    choice, judged, words = grade([cut(CHOICE, "B"), cut(JUDGED, "good"), cut(WORDS, "tea")], asked)
    assert channels(choice) == (0.0, 0.0)
    assert choice.verdicts["text"].reason == "truncated reply"
    assert channels(judged) == (MissingScore("truncated reply"), MissingScore("truncated reply"))
    assert channels(words) == (0.0, 0.0)
    assert words.verdicts["text"].parts["instructions"] == 2
    assert panel.asked == []


def test_without_sound_nothing_is_heard_which_is_no_answer_and_no_harm():
    panel = Panelists()
    of = [CHOICE, REFUSAL, JUDGED, STYLE]
    asked = Graders(rate=panel.rate, judge="reader", hears="heard")
    found = grade([answered(one, "B", None) for one in of], asked)
    assert [one.verdicts["speech"].score for one in found] == [
        0.0,
        1.0,
        MissingScore("no speech in the reply"),
        MissingScore("no speech in the reply"),
    ]
    assert panel.asked == [("reader", "B", False)]


def test_what_fails_beside_the_reply_leaves_nothing_known():
    panel = Panelists({"nine": "nine", "broken": "broken"})
    of = [answered(CHOICE, "unknown to the recogniser"), answered(JUDGED, "broken"), answered(JUDGED, "nine")]
    choice, broken, nine = grade(of, Graders(rate=panel.rate, judge="reader", hears="heard"))
    assert channels(choice) == (0.0, MissingScore("heard raised KeyError", fault="rater"))
    assert channels(broken) == (MissingScore("reader raised RuntimeError", fault="rater"),) * 2
    assert channels(nine) == (MissingScore("score outside the scale", fault="rater"),) * 2


def test_who_is_not_there_is_not_guessed_at():
    def nobody(spoken, names):
        raise AssertionError("no rater must be called")

    missing = AnsweredItem(item=CHOICE, spoken=None)
    odd = item(TaskKind.INSTRUCTIONS, instructions=(Instruction("mood:cheerful", {}),))
    of = [answered(CHOICE, "B"), answered(JUDGED, "good"), answered(STYLE, "good"), missing, answered(odd, "ha")]
    choice, judged, style, none, mood = grade(of, Graders(rate=nobody))
    assert channels(choice) == (1.0, MissingScore("no recogniser", fault="rater"))
    assert channels(judged) == (MissingScore("no judge", fault="rater"),) * 2
    assert style.verdicts["speech"].score == MissingScore("no judge", fault="rater")
    assert channels(none) == (MissingScore("no reply", fault="rater"),) * 2
    assert none.text is None
    assert mood.verdicts["text"].score == MissingScore("instruction that no program checks", fault="rater")
    assert mood.verdicts["text"].reason == "mood:cheerful"


def test_a_judge_is_told_the_reference_and_the_task():
    told = replace(ANSWER, part="usa").facts()
    assert told == {"task": "task", "part": "usa", "reference": "Paris; Lutetia", "answer": "Paris"}
    assert np.array_equal(spoken_elsewhere(ANSWER, "x", None).prompt.token_ids, [])
