"""A world built from nothing, in small: every step runs and the result reads like the shipped one."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.records import read_demonstrations, read_prompts
from playground import data, task
from playground.build import WorldRecipe, build_world, publish_world
from playground.codec import PlaygroundCodec
from playground.model import BatchSource, TrainingConfig
from speech.families import PLAYGROUND
from speech.vocabulary import Vocabulary

SMALL = WorldRecipe(
    base=32,
    train=16,
    held_out=8,
    held_out_facts=8,
    takes=1,
    codec_questions=16,
    line_weight=1,
    codebook=48,
    codec_rounds=2,
    training=TrainingConfig(steps=2, batch=2),
    evaluated=4,
)


@pytest.mark.e2e
def test_a_small_world(tmp_path: Path):
    out = tmp_path / "world"
    out.mkdir()
    (out / "stale").write_text("from an earlier build")
    report = build_world(out, 7, SMALL, say_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert not (out / "stale").exists()
    assert json.loads((out / "build.json").read_text()) == json.loads(json.dumps(report))
    assert report["seed"] == 7
    assert report["measured"]["held_out"]["prompts"] == 4
    vocabulary = Vocabulary.from_checkpoint(out / "base", PLAYGROUND.tokens)
    assert vocabulary.codebook == PlaygroundCodec.load(out / "codec").codebook == 48
    prompts = read_prompts(out / "data" / "train.parquet", vocabulary)
    demonstrations = read_demonstrations(out / "data" / "demonstrations.parquet", vocabulary)
    assert [one.prompt_id for one in demonstrations] == [one.id for one in prompts]


def test_publish_replaces_and_opens_files_to_all(tmp_path: Path):
    aside, out = tmp_path / "world.building", tmp_path / "world"
    for folder, text in ((aside, "new"), (out, "old")):
        folder.mkdir()
        (folder / "file").write_text(text)
    (aside / "file").chmod(0o600)
    publish_world(aside, out)
    assert (out / "file").read_text() == "new"
    assert (out / "file").stat().st_mode & 0o777 == 0o644


def test_replies_interleave_two_words_and_eight_codes():
    layout = data.WorldLayout(data.make_tokenizer(16))
    names = [layout.tokenizer.id_to_token(i) for i in layout.reply("oh ten it is", np.arange(11))]
    speech = [data.AUDIO.format(i) for i in range(11)]
    begin, end = data.BEGIN_AUDIO, data.END_AUDIO
    assert names == ["oh", "ten", begin, *speech[:8], end, "it", "is", begin, *speech[8:], end, data.END]
    with pytest.raises(ValueError, match="8 speech tokens are too few"):
        layout.reply("oh ten it is", np.arange(8))


def test_too_few_prompts_to_train_on_are_an_error():
    source = BatchSource([], [], data.SpokenTakes({}), data.WorldLayout(data.make_tokenizer(4)))
    with pytest.raises(ValueError, match="0 prompts are fewer than 16 batches of 32"):
        next(source.batches(32, np.random.default_rng(0)))


def test_every_line_has_its_answer():
    assert {task.said_answer(line.text) for line in data.every_line()} == set(task.ANSWERS)
    assert len(data.every_line()) == 4 * len(task.ANSWERS)
