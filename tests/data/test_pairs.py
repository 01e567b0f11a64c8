"""Files of preference pairs: from which replies, and what becomes of the rest."""

import json

import numpy as np
import pytest

from common.errors import InputError
from data.records import read_demonstrations, read_pairs, read_prompts
from duet import pairs
from duet.__main__ import execute
from observability.reply_schema import ReplyProvenance, ReplyRecord
from observability.run_directory import RunDirectory
from reward.scoring import ScoredReply
from reward.types import MissingScore, Scorecard
from speech.families import PLAYGROUND
from speech.grammar import Interleave
from speech.types import Finish, Reply
from speech.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


@pytest.fixture(scope="module")
def prompts(world, vocabulary):
    return read_prompts(world / "data/train.parquet", vocabulary)[:3]


@pytest.fixture(scope="module")
def replies(world, vocabulary) -> list[np.ndarray]:
    """Well-formed replies, all different."""
    return [d.reply_ids for d in read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:8]]


def config(world) -> str:
    return (
        f"model: {{path: {world / 'base'}, family: playground}}\n"
        f"data: {{prompts: {world / 'data/train.parquet'}}}\n"
        "reward: {weights: {answer: 0.5, heard: 0.5}}\n"
        "a_key_of_another_version: 1\n"
    )


@pytest.fixture
def records(tmp_path, world) -> RunDirectory:
    return RunDirectory.create(tmp_path / "trial", config(world))


def row(prompt_id: str, index: int, ids: np.ndarray, scores: dict, **changes) -> ReplyRecord:
    reply = Reply(
        prompt_id=prompt_id,
        index=index,
        token_ids=ids,
        channels=np.zeros(len(ids), dtype=np.int8),
        logps=np.zeros(len(ids), dtype=np.float32),
        **({"weight_version": 0, "finish": Finish.STOP, "defect": None} | changes),
    )
    card = Scorecard(scores={n: s for n, s in scores.items() if n != "total"}, details={}, seconds=1.0)
    return ReplyRecord(judged=ScoredReply(reply=reply, card=card, scores=scores, advantages=()), routes=[], use=None)


MADE = ReplyProvenance(raters={}, sampling={})
GONE = MissingScore("judge timed out")


@pytest.fixture
def trial(records, prompts, replies):
    """Two iterations: the first prompt has a pair in both, the second one scored reply, the third a small gap."""
    first, second, third = (prompt.id for prompt in prompts)
    records.add_replies(
        1,
        [
            row(first, 0, replies[0], {"answer": 3.0, "heard": 3.0, "total": 3.0}),
            row(first, 1, replies[1], {"answer": 5.0, "heard": 3.0, "total": 4.0}),
            row(first, 2, replies[2], {"answer": 3.0, "heard": 5.0, "total": 4.0}),
            row(first, 3, replies[3], {"answer": 1.0, "heard": 1.0, "total": 1.0}, finish=Finish.LENGTH),
            row(first, 4, replies[4], {"answer": 1.0, "heard": 1.0, "total": 1.0}, defect="no end"),
            row(second, 0, replies[5], {"answer": 5.0, "heard": 5.0, "total": 5.0}),
            row(second, 1, replies[6], {"answer": 1.0, "heard": GONE, "total": GONE}),
        ],
        MADE,
    )
    records.add_replies(
        2,
        [
            row(third, 0, replies[0], {"answer": 3.0, "heard": 3.0, "total": 3.0}),
            row(third, 1, replies[1], {"answer": 3.5, "heard": 3.0, "total": 3.25}),
            row(first, 0, replies[2], {"answer": 1.0, "heard": 2.0, "total": 1.5}),
            row(first, 1, replies[3], {"answer": 5.0, "heard": 4.0, "total": 4.5}),
        ],
        MADE,
    )
    return records.directory


def duet_pairs(*arguments: object) -> None:
    execute(["pairs", *map(str, arguments)])


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl"])
def test_pairs_of_a_run(trial, tmp_path, vocabulary, prompts, replies, name, capsys):
    """Method §7, rule 5 among others: what was cut off or is malformed is in no pair, and counted."""
    duet_pairs(trial, "--out", tmp_path / name)
    one, two = read_pairs(tmp_path / name, vocabulary)
    assert one.origin == "run trial iteration 1 replies 1,0"  # answer, the first rater of the total, breaks the tie
    assert (one.prompt_id, one.prompt_ids.tolist()) == (prompts[0].id, prompts[0].token_ids.tolist())
    assert (one.chosen_ids.tolist(), one.rejected_ids.tolist()) == (replies[1].tolist(), replies[0].tolist())
    assert (one.chosen_score, one.rejected_score) == (4.0, 3.0)
    assert one.scores_chosen == {"answer": 5.0, "heard": 3.0, "total": 4.0}
    assert one.chosen_ids.dtype == np.int32
    assert two.origin == "run trial iteration 2 replies 1,0"
    said = capsys.readouterr().out
    assert "iterations 1 to 2: 4 prompts read, 2 pairs written" in said
    assert "1 fewer than two scored replies, 1 gap below the margin" in said
    assert "1 malformed, 1 not finished, 1 without a score" in said
    assert "mean gap          2.000 in total" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "trial"]


def test_a_configuration_that_extends_another_is_read_whole(root, monkeypatch):
    monkeypatch.chdir(root)  # where its paths begin
    sources = pairs.read_pair_sources(root / "configs/comparison.yaml")
    assert list(sources.raters) == ["answer", "heard", "manner"]
    assert sources.prompts


def test_iterations_score_ties_and_margin_are_options(trial, tmp_path, vocabulary):
    out = tmp_path / "pairs.parquet"
    duet_pairs(trial, "--out", out, "--iterations", "1", "--ties", "heard,answer")
    assert [pair.origin for pair in read_pairs(out, vocabulary)] == ["run trial iteration 1 replies 2,0"]
    duet_pairs(trial, "--out", out, "--iterations", "2-9", "--margin", "0.25")
    assert [pair.origin[-11:] for pair in read_pairs(out, vocabulary)] == ["replies 1,0"] * 2
    # A reply without a total takes part by a score that it does have.
    duet_pairs(trial, "--out", out, "--score", "answer", "--iterations", "1", "--ties", "total")
    found = [(pair.origin, pair.chosen_score, pair.rejected_score) for pair in read_pairs(out, vocabulary)]
    assert found == [
        ("run trial iteration 1 replies 1,0", 5.0, 3.0),
        ("run trial iteration 1 replies 0,1", 5.0, 1.0),
    ]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["RUN", "--score", "manner"], "--score: no reply of .* has the score 'manner'; scores: answer, heard, total"),
        (["RUN", "--ties", "answer,tone"], "--ties: no reply of .* has the score 'tone'"),
        (["RUN", "--margin", "4.5"], "no pair among 4 prompts; 1 fewer than two scored replies, 3 gap below"),
        (["RUN", "--margin", "-1"], "--margin: '-1' is not allowed; input should be greater than or equal to 0"),
        (["RUN", "--iterations", "1,2"], "--iterations: '1,2' is not a number or a range"),
        (["RUN", "--iterations", "3-4"], "has replies of the iterations 1 to 2, none in 3-4"),
        (["RUN", "--config", "c.yaml"], "--config goes with --scored"),
        (["--scored", "s.jsonl"], "--scored needs --config"),
        (["nowhere"], "nowhere is not the directory of a run"),
        ([], "either the directory of a run or --scored"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_writes_nothing(trial, tmp_path, arguments, complaint):
    with pytest.raises(InputError, match=complaint):
        duet_pairs(*(trial if a == "RUN" else a for a in arguments), "--out", tmp_path / "pairs.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["trial"]


def test_other_training_data_than_that_of_the_run(records, tmp_path, replies):
    records.add_replies(1, [row("unknown", 0, replies[0], {"total": 1.0})], MADE)
    with pytest.raises(InputError, match=r"replies to the prompt 'unknown', which .*train\.parquet does not have"):
        duet_pairs(records.directory, "--out", tmp_path / "pairs.parquet")


def judged(semantic: object, acoustic: object, **tokens) -> dict:
    return {"gemini_score": {"semantic_score": semantic, "paralinguistic_score": acoustic}} | tokens


@pytest.fixture
def scored(tmp_path, world, vocabulary):
    """Writes records as a scored file, makes pairs of them, and returns these."""

    def make(*made: object, name: str = "scored.jsonl") -> list:
        content = json.dumps(made) if name.endswith(".json") else "\n".join(json.dumps(record) for record in made)
        (tmp_path / name).write_text(content)
        (tmp_path / "config.yaml").write_text(config(world))
        out = tmp_path / "pairs.parquet"
        duet_pairs("--scored", tmp_path / name, "--config", tmp_path / "config.yaml", "--out", out)
        return read_pairs(out, vocabulary)

    return make


@pytest.mark.parametrize("name", ["scored.jsonl", "scored.json"])
def test_pairs_of_a_scored_file(scored, vocabulary, prompts, replies, name, capsys):
    text, codes = vocabulary.text(replies[1]), vocabulary.codes(replies[1]).tolist()
    by_id = {
        "id": prompts[0].id,
        "messages": [],
        "output": {
            "a": judged(2, 4, **{"output-ids": replies[0].tolist()}),
            "b": judged(5, 4, **{"output-text": text, "output-codes": codes}),
            "c": judged(4, 2, **{"output-ids": replies[2].tolist()}),
            "d": judged(None, 1, **{"output-audio": "d.wav"}),
            "e": judged(1, 1, **{"output-ids": replies[3].tolist()[:-1]}),
        },
    }
    by_ids = {
        "prompt_ids": [1, 2, 3],
        "output": {f"{n}": judged(n, n, **{"output-ids": replies[n].tolist()}) for n in (1, 5)},
    }
    one, two = scored(by_id, by_ids, name=name)
    assert one.prompt_ids.tolist() == prompts[0].token_ids.tolist()
    assert one.chosen_ids.tolist() == replies[1].tolist()
    assert one.rejected_ids.tolist() == replies[0].tolist()  # as good as c in the mean, worse in what is said
    assert one.scores_chosen == {"semantic": 5.0, "acoustic": 4.0, "total": 4.5}
    assert (one.chosen_score, one.rejected_score) == (4.5, 3.0)
    assert one.origin.endswith("1 replies b,a")
    assert two.prompt_ids.tolist() == [1, 2, 3]
    assert two.origin.endswith("2 replies 5,1")
    assert "replies left out  1 malformed, 1 without a score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([], "line 1: expected an object, got list"),
        ({"prompt_ids": [1]}, "line 1: field 'output' must be an object"),
        ({"output": {"a": {}}}, "line 1: the prompt has no token ids; give 'prompt_ids'"),
        ({"id": "x", "output": {"a": {}}}, "data.prompts has none with the id 'x'"),
        ({"prompt_ids": [10**6], "output": {"a": {}}}, r"field 'prompt_ids' holds 1000000, outside \[0, "),
        ({"prompt_ids": [1], "output": {"a": judged("good", 2)}}, "output 'a': field 'semantic_score' holds 'good'"),
        (
            {"prompt_ids": [1], "output": {"a": judged(1, 2, **{"output-text": "one", "output-audio": "a.wav"})}},
            "output 'a': the reply has no tokens; give 'output-ids', its token ids, or 'output-codes'.*'output-audio'",
        ),
        (
            {"prompt_ids": [1], "output": {"a": judged(1, 2, **{"output-text": "Übermut", "output-codes": [1]})}},
            "output 'a': the tokenizer makes .* of 'output-text' 'Übermut'",
        ),
        (
            {"prompt_ids": [1], "output": {"a": judged(1, 2, **{"output-text": "one", "output-codes": [512]})}},
            r"field 'output-codes' holds 512, outside \[0, 512\)",
        ),
        ({"prompt_ids": [1], "output": {"a": {}, "b": {}}}, "no pair among 1 prompts; 1 fewer than two scored"),
    ],
)
def test_scored_records_that_cannot_be_used(scored, record, complaint):
    with pytest.raises(InputError, match=complaint):
        scored(record)


def test_text_and_codes_are_laid_out_as_the_family_does(world, vocabulary):
    for d in read_demonstrations(world / "data/demonstrations.parquet", vocabulary)[:64]:
        speech = (vocabulary.codes(d.reply_ids) + vocabulary.speech_first).tolist()
        text = vocabulary.tokenizer.encode(d.text, add_special_tokens=False).ids
        assert PLAYGROUND.interleave.lay_out(text, speech, vocabulary).tolist() == d.reply_ids.tolist()


def test_layout_of_a_pattern_whose_last_chunk_repeats(vocabulary):
    """[1, 10, 4, 10]: 1 text, 8 speech, then 4 text, 8 speech; the rest of the speech in the last chunk (§10)."""
    text, speech = list(range(10, 17)), list(range(100, 130))
    b, e = vocabulary.begin_speech, vocabulary.end_speech
    found = Interleave.from_ratios([1, 10, 4, 10]).lay_out(text, speech, vocabulary)
    expected = [10, b, *speech[:8], e, 11, 12, 13, 14, b, *speech[8:16], e, 15, 16, b, *speech[16:], e]
    assert found.tolist() == [*expected, vocabulary.end_reply]
