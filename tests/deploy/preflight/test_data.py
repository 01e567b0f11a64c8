"""Data files, row by row: every fault is found, its first rows are named, and it is said what to do."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import InputError
from controller.inputs import reply_structure
from data.records import scan_demonstrations as demonstrations_in
from data.records import scan_pairs as pairs_in
from data.records import scan_prompts as prompts_in
from deploy.preflight import data
from deploy.preflight.data import Recordings, check_overlap, scan_demonstrations, scan_pairs, scan_prompts
from deploy.preflight.finding import Severity
from speech.audio import Waveform
from speech.families import PLAYGROUND
from speech.types import Demonstration, Prompt
from speech.vocabulary import Vocabulary
from tests.deploy.preflight.cases import all_fine, configured, only

KEY = "data.prompts"


@pytest.fixture(scope="module")
def vocabulary(world) -> Vocabulary:
    return Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)


def prompt(name: str, ids=(1, 3, 40, 4, 1), text: str = "two plus five", **facts: str) -> Prompt:
    return Prompt(id=name, token_ids=np.array(ids, dtype=np.int32), text=text, facts=facts)


def numbered(found: list) -> Iterator[tuple[str, object]]:
    return ((f"mine.parquet row {number}", row) for number, row in enumerate(found, start=1))


def prompts(root, vocabulary, found, *overrides):
    return scan_prompts(configured(root, *overrides), vocabulary, KEY, numbered(found), set())


def demonstrations(root, vocabulary, found, *overrides):
    config = configured(root, *overrides)
    return scan_demonstrations(config, vocabulary, reply_structure(config, PLAYGROUND, vocabulary), numbered(found))


@pytest.fixture(scope="module")
def shown(world, vocabulary) -> list[Demonstration]:
    """A few good demonstrations."""
    found = demonstrations_in(world / "data/demonstrations.parquet", vocabulary)
    return [row for _, row in zip(range(8), (row for _, row in found), strict=False)]


def test_the_worlds_own_files_are_fine(root, world, vocabulary):
    config = configured(root)
    for name in ("train", "held_out", "held_out_facts"):
        scan = scan_prompts(config, vocabulary, KEY, prompts_in(world / f"data/{name}.parquet", vocabulary), set())
        all_fine(scan.findings)
    held_to = reply_structure(config, PLAYGROUND, vocabulary)
    found = demonstrations_in(world / "data/demonstrations.parquet", vocabulary)
    (finding,) = all_fine(scan_demonstrations(config, vocabulary, held_to, found).findings)
    assert finding.text.startswith("data.sft: 2,560 replies of 25 to 54 tokens")


def test_rows_that_cannot_be_used_are_counted_and_the_first_are_named(root, vocabulary):
    rows = [InputError(f"mine.parquet row {n}: field 'id' is ''") for n in range(1, 6)]
    found = only(prompts(root, vocabulary, [*rows, prompt("a", (1, 40))]).findings, Severity.ERROR)
    assert found.text.startswith("data.prompts: 5 of 6 rows cannot be used: mine.parquet row 1: field 'id'")
    assert found.text.endswith("mine.parquet row 3: field 'id' is ''; and 2 more")
    assert "docs/own-data.md" in found.remedy


def test_prompts_that_leave_no_room_for_a_reply(root, vocabulary):
    rows = [prompt("a", [40] * 96), prompt("b", [40] * 97), prompt("c", [41] * 120)]
    found = only(prompts(root, vocabulary, rows).findings, Severity.ERROR)
    assert "2 of 3 prompts have more than the 96 tokens that model.max_model_len = 192 leaves" in found.text
    assert "row 2 has 97; mine.parquet row 3 has 120" in found.text
    assert "raise model.max_model_len" in found.remedy
    all_fine(prompts(root, vocabulary, rows, "model.max_model_len=216").findings)


def test_prompts_that_say_the_same(root, vocabulary):
    rows = [prompt("a"), prompt("b", (1, 40)), prompt("c")]
    found = only(prompts(root, vocabulary, rows).findings, Severity.WARNING)
    assert "1 of 3 prompts have the same tokens as another: mine.parquet row 3 as row 1" in found.text
    others = [prompt(str(n), (40, 40 + n % 300, 40 + n // 300)) for n in range(400)]
    (finding,) = all_fine(prompts(root, vocabulary, [*rows, *others]).findings)
    assert finding.text.endswith("1 have the same tokens as another")


def test_prompts_without_words(root, vocabulary):
    found = only(prompts(root, vocabulary, [prompt("a", text=" "), prompt("b", (1, 40))]).findings, Severity.WARNING)
    assert "1 of 2 prompts have no text" in found.text
    assert "row 1" in found.text


def test_ids_whose_embeddings_were_never_trained(root, vocabulary):
    padded = Vocabulary(**(vars(vocabulary) | {"size": 600}))
    found = only(prompts(root, padded, [prompt("a", (1, 560))]).findings, Severity.WARNING)
    assert "1 of 1 prompts contain ids that the tokenizer does not have" in found.text
    assert "row 1 has 560" in found.text


def test_prompts_that_are_wanted_are_kept(root, vocabulary):
    rows = [prompt("first", (1, 40)), prompt("b", (1, 41)), prompt("wanted", (1, 42))]
    scan = scan_prompts(configured(root), vocabulary, KEY, numbered(rows), {"wanted"})
    assert [kept.id for kept in scan.prompts] == ["first", "wanted"]


def test_only_the_first_rows_have_digests(root, vocabulary, monkeypatch):
    monkeypatch.setattr(data, "MAX_DIGESTS", 2)
    ids = [(1, 40), (1, 41), (1, 42), (1, 42), (1, 41)]
    scan = prompts(root, vocabulary, [prompt(str(number), given) for number, given in enumerate(ids)])
    assert len(scan.digests) == 2
    assert (
        "1 of 5 prompts have the same tokens as another: mine.parquet row 5 as row 2"
        in only(scan.findings, Severity.WARNING).text
    )


def test_held_out_prompts_that_are_trained_on(root, vocabulary):
    train = prompts(root, vocabulary, [prompt("a", (1, 40)), prompt("b", (1, 41))])
    held_out = prompts(root, vocabulary, [prompt("x", (1, 42)), prompt("y", (1, 41))])
    found = only(check_overlap(train, {"mine": held_out}), Severity.WARNING)
    assert found.text.startswith("data.validation.mine: 1 of 2 prompts are also training prompts")
    assert "row 2 is row 2 of data.prompts" in found.text
    assert not list(check_overlap(train, {"mine": prompts(root, vocabulary, [prompt("x", (1, 42))])}))


def changed(row: Demonstration, **changes) -> Demonstration:
    return Demonstration(**(vars(row) | changes))


def test_demonstrations_that_cannot_be_learnt_from(root, vocabulary, shown):
    # Without its end, and with more than the model can hold.
    rows = [changed(shown[0], reply_ids=shown[0].reply_ids[:-1]), shown[1]]
    found = only(demonstrations(root, vocabulary, rows).findings, Severity.ERROR)
    assert "1 of 2 replies cannot be trained on: mine.parquet row 1: reply_ids violates" in found.text
    longest = max(len(row.prompt_ids) + len(row.reply_ids) for row in shown)
    tight = (f"model.max_model_len={longest - 1}", f"rollout.max_new_tokens={max(len(row.reply_ids) for row in shown)}")
    found = only(demonstrations(root, vocabulary, shown, *tight).findings, Severity.ERROR)
    assert f"more than model.max_model_len = {longest - 1}" in found.text


def test_demonstrations_longer_than_a_sample_may_be(root, vocabulary, shown):
    longest = max(len(row.reply_ids) for row in shown)
    found = only(
        demonstrations(root, vocabulary, shown, f"rollout.max_new_tokens={longest - 1}").findings, Severity.WARNING
    )
    assert f"longer than rollout.max_new_tokens = {longest - 1}" in found.text
    assert found.remedy.startswith("raise rollout.max_new_tokens")


def test_demonstrations_without_speech(root, vocabulary, shown):
    rows = [changed(shown[0], reply_ids=np.array([5, 6, vocabulary.end_reply], dtype=np.int32)), *shown[1:3]]
    free = "rollout.constrained_decoding=off"
    found = only(demonstrations(root, vocabulary, rows, free).findings, Severity.WARNING)
    assert "1 of 3 replies have no speech" in found.text
    all_fine(demonstrations(root, vocabulary, rows, free, "anchor.speech_weight=0").findings)


def test_demonstrations_that_are_the_same(root, vocabulary, shown):
    found = only(demonstrations(root, vocabulary, [*shown[:2], shown[0]]).findings, Severity.WARNING)
    assert "row 3 as row 1" in found.text


def test_pairs_of_a_file(root, vocabulary, shown, tmp_path):
    config = configured(root)
    held_to = reply_structure(config, PLAYGROUND, vocabulary)
    good, other = shown[0].reply_ids.tolist(), shown[1].reply_ids.tolist()
    prompt_ids = shown[0].prompt_ids.tolist()

    def looked_at(*replies: tuple[list[int], list[int]]):
        lines = [
            {"prompt_id": str(n), "prompt_ids": prompt_ids, "chosen_ids": chosen, "rejected_ids": rejected}
            for n, (chosen, rejected) in enumerate(replies)
        ]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return scan_pairs(config, held_to, pairs_in(tmp_path / "pairs.jsonl", vocabulary))

    (finding,) = all_fine(looked_at((good, other), (other, good)))
    assert finding.text == "algorithm.dpo.pairs_file: 2 pairs"
    found = only(looked_at((good, other), (good, good)), Severity.ERROR)
    assert "1 of 2 rows cannot be used" in found.text
    assert "line 2: field 'rejected_ids' is the same as 'chosen_ids'" in found.text
    found = only(looked_at((good, other[:-1]), (good, other)), Severity.ERROR)
    assert "1 of 2 pairs cannot be trained on" in found.text
    assert "line 1: rejected_ids violates the grammar" in found.text


def test_the_first_demonstrations_with_speech_are_kept(root, vocabulary, shown):
    kept = demonstrations(root, vocabulary, shown).demonstrations
    assert [row.prompt_id for row in kept] == [row.prompt_id for row in shown[:3]]


def test_a_file_larger_than_a_batch_is_read_to_its_end(tmp_path, world, vocabulary, monkeypatch):
    monkeypatch.setattr("data.parquet.AT_ONCE", 10)
    table = pq.read_table(world / "data/train.parquet").slice(0, 25)
    ids = table["id"].to_pylist()
    ids[3], ids[17] = "", ids[2]
    pq.write_table(table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids)), tmp_path / "mine.parquet")
    found = list(prompts_in(tmp_path / "mine.parquet", vocabulary))
    assert len(found) == 25
    bad = {place.rpartition(" ")[2]: str(row) for place, row in found if isinstance(row, InputError)}
    assert set(bad) == {"4", "18"}
    assert bad["18"].endswith(f"field 'id' is {ids[2]!r}, as in row 3; ids must differ")


def recordings(tmp_path, *facts: str, rate: int | None = 16000):
    watched = Recordings(tmp_path)
    rows = [prompt(str(number), reference=fact) for number, fact in enumerate(facts)]
    assert [row for _, row in watched.watch(numbered(rows))] == rows
    return list(watched.findings(KEY, rate))


def test_sound_files_that_facts_name(tmp_path):
    Waveform(np.zeros(1600, dtype=np.float32), 16000).write(tmp_path / "sounds/good.wav")
    Waveform(np.zeros(1600, dtype=np.float32), 22050).write(tmp_path / "sounds/other.wav")
    (tmp_path / "sounds/broken.wav").write_bytes(b"no sound")
    (finding,) = all_fine(recordings(tmp_path, "sounds/good.wav", "two plus five"))
    assert finding.text == "data.prompts: sound files that facts name: 1 of 16,000 Hz"
    found = only(recordings(tmp_path, "sounds/good.wav", "sounds/other.wav"), Severity.WARNING)
    assert "other rates than the codec's 16,000 Hz: 1 of 16,000 Hz, 1 of 22,050 Hz" in found.text
    found = only(recordings(tmp_path, "sounds/good.wav", "sounds/none.wav", "../out.WAV"), Severity.ERROR)
    assert "2 of 3 sound files do not exist: mine.parquet row 2, fact 'reference':" in found.text
    assert "not below" in found.text
    found = only(recordings(tmp_path, "sounds/broken.wav"), Severity.ERROR)
    assert "1 of 1 sound files cannot be read" in found.text
