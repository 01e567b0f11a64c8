"""Task scores, IQ and EQ from verdicts, derived by hand."""

import math

import pytest
from rich.console import Console

from evaluation.benchmarks.answer_extraction import AnswerVerdict
from evaluation.benchmarks.grading import GradedItem
from evaluation.benchmarks.items import BenchmarkItem, TaskKind
from evaluation.benchmarks.tables import rows, shown, summary
from reward.types import MissingScore, Score


def assessed(
    task: str, kind: TaskKind, text: Score | None, speech: Score, *, part: str = "", language: str = "", **parts
):
    item = BenchmarkItem(
        task=task, id="1", place="", kind=kind, text="which", part=part, language=language, references=("B", "C")
    )
    verdicts = {"speech": AnswerVerdict(score=speech, reason="so", parts=parts)}
    if text is not None:
        verdicts["text"] = AnswerVerdict(score=text, parts=parts)
    return GradedItem(item=item, text="said", heard=None, finish="stop", defect=None, seconds=1.5, verdicts=verdicts)


LOST = MissingScore("timeout", fault="rater")


def test_shares_are_percentages_of_what_is_known():
    found = summary([assessed("mmsu", TaskKind.CHOICE, text, 1.0) for text in (1.0, 1.0, 0.0, LOST)], 5.0)
    task = found["tasks"]["mmsu"]
    assert (task["kind"], task["items"]) == ("choice", 4)
    text = task["text"]
    assert (text["score"], text["scored"], text["missing"]) == (pytest.approx(200 / 3), 3, {"timeout": 1})
    # The standard deviation of 1, 1, 0 is √(1/3), divided by √3.
    assert text["standard_error"] == pytest.approx(100 / 3)
    assert task["speech"]["score"] == 100.0


def test_a_judges_mean_is_a_percentage_of_the_highest_score():
    """VoiceBench multiplies 1..5 by 20."""
    found = summary([assessed("commoneval", TaskKind.JUDGED, score, LOST) for score in (4.0, 2.0)], 5.0)
    assert found["tasks"]["commoneval"]["text"]["score"] == 60.0
    assert found["tasks"]["commoneval"]["speech"] == {
        "score": None, "standard_error": None, "scored": 0, "missing": {"timeout": 2},
    }  # fmt: skip


def test_instructions_have_four_measures_and_their_mean():
    one = dict(strict_prompt=1.0, loose_prompt=1.0, strict_followed=1.0, loose_followed=1.0, instructions=1.0)
    two = dict(strict_prompt=0.0, loose_prompt=1.0, strict_followed=1.0, loose_followed=3.0, instructions=3.0)
    found = summary(
        [assessed("ifeval", TaskKind.INSTRUCTIONS, parts["strict_prompt"], LOST, **parts) for parts in (one, two)], 5.0
    )
    text = found["tasks"]["ifeval"]["text"]
    measures = ("strict_prompt", "loose_prompt", "strict_instruction", "loose_instruction")
    assert [text[name] for name in measures] == [50.0, 100.0, 50.0, 100.0]
    assert text["score"] == 75.0
    page = Console(width=100, record=True)
    page.print(shown(found, "voicebench"))
    assert "strict, prompt" in page.export_text()


def test_iq_is_the_mean_of_the_tasks_that_have_a_score_each_alike():
    """Row of Whisper and GPT-4o in VoiceBench's first table: 87.23 overall."""
    table = {"alpacaeval_full": 4.80, "commoneval": 4.47}
    shares = {"sd-qa": 75.77, "mmsu": 81.69, "openbookqa": 92.97, "ifeval": 76.51, "advbench": 98.27}
    found = summary(
        [
            *[assessed(task, TaskKind.JUDGED, score, LOST) for task, score in table.items()],
            *[assessed(task, TaskKind.CHOICE, share / 100, LOST) for task, share in shares.items()],
            *[assessed("alpacaeval", TaskKind.JUDGED, 1.0, 1.0)],  # same questions as another task
        ],
        5.0,
    )
    assert round(found["IQ"]["text"], 2) == 87.23
    assert found["IQ"]["text_tasks"] == [*table, *shares]
    assert (found["IQ"]["speech"], found["IQ"]["speech_tasks"]) == (None, [])
    assert "EQ" not in found


def test_parts_of_a_task_have_scores_of_their_own():
    regions = [("usa", 1.0), ("usa", 0.0), ("ind_n", 1.0)]
    found = summary([assessed("sd-qa", TaskKind.ANSWER, score, LOST, part=part) for part, score in regions], 5.0)
    assert found["tasks"]["sd-qa"]["parts"] == {
        "usa": {"items": 2, "text": 50.0, "speech": None},
        "ind_n": {"items": 1, "text": 100.0, "speech": None},
    }


def test_eq_weighs_abilities_as_vstyle_does_and_languages_alike():
    def style(part: str, score: Score, language: str):
        return assessed(part.partition("/")[0], TaskKind.STYLE, None, score, part=part, language=language)

    english = [
        style("acoustic_attributes/age", 2.0, "en"),
        style("acoustic_attributes/composite_properties", 4.0, "en"),
        style("empathy/anger", 5.0, "en"),
        style("empathy/anger", 3.0, "en"),
        style("role_play/scenario", LOST, "en"),
    ]
    found = summary([*english, style("empathy/anger", 1.0, "zh")], 5.0)
    weights = [0.125 / 6, 0.125, 0.0625]
    expected = sum(w * mean for w, mean in zip(weights, (2.0, 4.0, 4.0), strict=True)) / sum(weights)
    assert found["EQ"]["languages"] == {"en": pytest.approx(expected), "zh": 1.0}
    assert found["EQ"]["speech"] == pytest.approx((expected + 1.0) / 2)
    assert "role_play/scenario" not in found["EQ"]["abilities"]
    acoustic = found["tasks"]["acoustic_attributes"]
    assert acoustic["speech"]["score"] == 3.0  # plain, on the judge's scale
    assert "text" not in acoustic
    assert "IQ" not in found


def test_rows_keep_what_is_missing_as_missing():
    table = rows([assessed("mmsu", TaskKind.CHOICE, 1.0, LOST), assessed("empathy", TaskKind.STYLE, None, 2.5)])
    choice, style = table.to_pylist()
    assert (choice["text_score"], choice["speech_score"], choice["speech_missing"]) == (1.0, None, "timeout")
    assert (choice["references"], choice["text"], choice["heard"], choice["seconds"]) == ("B; C", "said", None, 1.5)
    assert (style["text_score"], style["text_missing"], style["speech_score"]) == (None, None, 2.5)
    assert not any(isinstance(value, float) and math.isnan(value) for value in choice.values())


def test_the_table_shows_both_channels_and_counts_what_is_missing():
    found = summary([assessed("mmsu", TaskKind.CHOICE, text, LOST) for text in (1.0, 0.0, LOST)], 5.0)
    page = Console(width=100, record=True)
    page.print(shown(found, "voicebench"))
    lines = [line.split() for line in page.export_text().splitlines()]
    assert ["voicebench", "items", "text", "missing", "speech", "missing"] in lines
    assert ["mmsu", "3", "50.0", "1", "–", "3"] in lines
    assert ["IQ", "50.0", "–"] in lines
    assert ["3", "×", "speech:", "timeout"] in lines
