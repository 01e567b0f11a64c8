"""Selection of prompts for the listening room."""

from observability.report.listening import (
    MAX_PER_KIND,
    SAMPLE_SIZE,
    TRAINING,
    RecordingKey,
    choose_prompts,
    differs,
    sample,
    strip,
)


def row(prompt: str, total: float | None = 2.0, *, heard: str = "yes", defect: str | None = None) -> dict:
    details = [("heard", heard)]
    return {"prompt_id": prompt, "total": total, "text": "yes", "details": details, "finish": "stop", "defect": defect}


def rows(totals: dict[str, float | None], **changes) -> dict:
    return {"held_out": {name: row(name, total, **changes) for name, total in totals.items()}}


NAMES = [f"p{number:03d}" for number in range(200)]


def test_the_sample_is_drawn_without_a_look_at_the_scores():
    low, high = rows(dict.fromkeys(NAMES, 1.0)), rows(dict.fromkeys(NAMES, 5.0))
    assert sample(low) == sample(high)
    assert len(set(sample(low))) == SAMPLE_SIZE
    assert sample(rows(dict.fromkeys(NAMES[:5], 1.0))) == [RecordingKey("held_out", name) for name in NAMES[:5]]


def test_the_largest_changes_are_there_in_either_direction():
    before = rows(dict.fromkeys(NAMES, 3.0))
    after = rows({name: 3.0 + (place - 100) / 100 for place, name in enumerate(NAMES)})
    chosen = choose_prompts(before, after, [], {})
    drawn = set(sample(before))
    others = [key.id for key in chosen if key not in drawn]
    gains, losses = NAMES[: -MAX_PER_KIND - 1 : -1], NAMES[:MAX_PER_KIND]
    assert set(gains) | set(losses) <= {key.id for key in chosen}
    assert set(others) <= set(gains) | set(losses)


def test_a_question_without_a_score_on_either_side_has_no_change():
    before, after = rows({"a": None, "b": 1.0}), rows({"a": 5.0, "b": None})
    assert set(choose_prompts(before, after, [], {})) == {
        RecordingKey("held_out", "a"),
        RecordingKey("held_out", "b"),
    }  # by the sample alone


def test_what_went_wrong_is_found_in_evaluations_and_in_training():
    before = rows(dict.fromkeys(NAMES, 3.0))
    drawn = {key.id for key in sample(before)}
    broken, deaf = [name for name in NAMES if name not in drawn][:2]
    before["held_out"][broken]["defect"] = "no end"
    before["held_out"][deaf]["details"] = [("heard", "no")]
    training = {9: [row("t9", defect="no end"), row("t8")], 3: [row("t3", heard="no")]}
    chosen = choose_prompts(before, {}, [], training)
    for key in (
        RecordingKey("held_out", broken),
        RecordingKey("held_out", deaf),
        RecordingKey(TRAINING, "t9"),
        RecordingKey(TRAINING, "t3"),
    ):
        assert key in chosen
    assert RecordingKey(TRAINING, "t8") not in chosen


def test_the_questions_that_are_listened_to_come_first_and_none_comes_twice():
    before = rows(dict.fromkeys(NAMES, 3.0))
    listened = [RecordingKey("held_out", "p150"), RecordingKey(TRAINING, "t1"), sample(before)[3]]
    chosen = choose_prompts(before, {}, listened, {})
    assert chosen[:3] == listened
    assert len(chosen) == len(set(chosen))


def test_a_run_without_evaluations_shows_its_newest_iteration():
    assert choose_prompts({}, {}, [], {2: [row("t2"), row("t2")], 1: [row("t1")]}) == [RecordingKey(TRAINING, "t2")]
    assert choose_prompts({}, {}, [], {}) == []


def test_words_differ_by_more_than_blanks_and_capitals():
    assert not differs("Oh  ten it is", "oh ten it is ")
    assert differs("oh ten it is", "oh two it is")
    assert differs("oh ten it is", "")


def test_a_strip_is_runs_of_one_channel(playground):
    vocabulary, one = playground.vocabulary, playground.demonstrations[0]
    runs = strip(one.reply_ids, vocabulary.channels(one.reply_ids), vocabulary)
    assert sum(tokens for _, tokens, _ in runs) == len(one.reply_ids)
    assert [kind for kind, _, _ in runs[:4]] == ["text", "boundary", "speech", "boundary"]
    assert runs[-1][:2] == ["end", 1]
    assert " ".join(words for _, _, words in runs if words) == one.text
    foreign = strip(one.reply_ids[:2], vocabulary.channels(one.reply_ids[:2]) * 0 - 1, vocabulary)
    assert foreign == [["foreign", 2, ""]]
    assert strip(one.reply_ids[:0], one.reply_ids[:0], None) == []
