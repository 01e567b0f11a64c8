"""Kimi-Audio, two streams side by side: vocabulary, dialogues, checkpoints, and whole runs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from common.errors import InputError
from configs.load import load_config
from controller.inputs import read_inputs
from data.records import DEMONSTRATIONS, PROMPTS
from learner.checkpoint_state import load_model, save_model
from learner.policy import PolicyModel
from observability.report.listening import strip
from speech.checkpoint import check_checkpoint
from speech.checkpoint_conversion import export_checkpoint, import_checkpoint
from speech.grammar import check_reply_grammar, token_kinds
from speech.modeling import load_pretrained, model_class
from speech.types import Prompt, Turn
from speech.vocabulary import Channel, Vocabulary
from tests.commands import duet
from tests.families import kimi
from tests.families.codec import Tones
from tests.families.kimi import (
    ASSISTANT,
    BEGIN,
    BLANK,
    END,
    FAMILY,
    FIRST,
    OVER,
    SPEAK,
    STOP,
    USER,
    prompts_of,
    scorer_of,
    valid,
)

pytestmark = [pytest.mark.families, pytest.mark.timeout(400), pytest.mark.xdist_group("families-kimi-audio")]
CODEC = {"rate": 24000, "codebook": 16384, "tokens_per_second": 12.5}


@pytest.fixture(scope="module")
def vocabulary(checkpoint) -> Vocabulary:
    return Vocabulary.from_checkpoint(checkpoint, FAMILY.tokens)


@pytest.fixture(scope="module")
def prompts(vocabulary) -> list[Prompt]:
    return prompts_of(vocabulary)


@pytest.fixture
def scorer(checkpoint, vocabulary) -> PolicyModel:
    return scorer_of(checkpoint, vocabulary)


def test_ids_are_those_of_the_released_tokenizer(vocabulary):
    assert (vocabulary.end_reply, vocabulary.end_text, vocabulary.blank) == (STOP, END, BLANK)
    assert (vocabulary.speech_first, vocabulary.codebook, vocabulary.size) == (FIRST, 16384, 168448)
    channels = vocabulary.channel_table()
    assert channels[[5, FIRST, 168447, END, STOP]].tolist() == [
        Channel.TEXT, Channel.SPEECH, Channel.SPEECH, Channel.END, Channel.BOUNDARY,
    ]  # fmt: skip
    specials = set(range(kimi.WORDS, FIRST)) - {END, STOP}
    assert set(channels[sorted(specials)].tolist()) == {-1}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kimia_token_offset": 152000}, "kimia_token_offset is 152000, .* from 152064 to 152064"),
        ({"kimia_token_offset": "far"}, "kimia_token_offset is 'far'"),
        ({"kimia_token_offset": None}, "kimia_token_offset is None"),
    ],
)
def test_codes_that_lie_elsewhere_are_refused(checkpoint, tmp_path, change, complaint):
    described = json.loads((checkpoint / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer.json").symlink_to(checkpoint / "tokenizer.json")
    with pytest.raises(InputError, match=complaint):
        Vocabulary.from_checkpoint(tmp_path, FAMILY.tokens)


def test_a_dialogue_is_two_streams(vocabulary):
    """As `KimiAPromptManager.get_prompt` of the released code has it, with output_type "both"."""
    turns = [
        Turn(role="user", text="w5 w6", codes=np.array([7, 8])),
        Turn(role="assistant", text="w1 w2", codes=np.array([3])),
        Turn(role="user", text="w4"),
        Turn(role="assistant", text="w3"),
        Turn(role="user", codes=np.array([9])),
        Turn(role="user", text="w2"),
    ]
    text, speech = FAMILY.prompt(turns, vocabulary).reshape(-1, 2).T
    heard = [(BLANK, USER), (5, BLANK), (6, BLANK), (BLANK, BEGIN), (BLANK, FIRST + 7), (BLANK, FIRST + 8)]
    heard += [(BLANK, STOP), (BLANK, SPEAK), (BLANK, OVER)]
    answered = [(BLANK, ASSISTANT), (1, BLANK), (2, BLANK), *[(BLANK, BLANK)] * 4, (BLANK, FIRST + 3), (BLANK, OVER)]
    read = [(BLANK, USER), (4, BLANK), (BLANK, OVER), (BLANK, ASSISTANT), (3, BLANK), (END, BLANK), (BLANK, OVER)]
    last = [(BLANK, USER), (BLANK, BEGIN), (BLANK, FIRST + 9), (BLANK, STOP), (2, BLANK), (BLANK, OVER)]
    assert list(zip(text.tolist(), speech.tolist(), strict=True)) == [
        *heard, *answered, *read, *last, (BLANK, ASSISTANT),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([], "must end with a turn"),
        ([Turn(role="assistant", text="w1")], "must end with a turn"),
        ([Turn(role="system", text="w1"), Turn(role="user", text="w1")], "role 'system' .*: user, assistant"),
        ([Turn(role="user", codes=np.array([16384]))], "code 16384, outside the codebook of 16384"),
        ([Turn(role="user", features=3)], "features of an encoder"),
        (
            [Turn(role="assistant", text="w1 " * 9, codes=np.array([1])), Turn(role="user", text="w1")],
            "9 text tokens, but 1 codes",
        ),
    ],
)
def test_what_is_no_dialogue_is_refused(vocabulary, turns, complaint):
    with pytest.raises(InputError, match=complaint):
        FAMILY.prompt(turns, vocabulary)


def test_demonstrations_are_valid_and_say_what_they_were_made_of(vocabulary):
    codes = np.array([5, 16383, 0, 77])
    reply = FAMILY.reply("w12 w0 w151642", codes, vocabulary)
    assert valid(reply)
    assert check_reply_grammar(reply, FAMILY.interleave, token_kinds(vocabulary)) is None
    assert vocabulary.text(reply) == "w12w0w151642"
    assert vocabulary.codes(reply).tolist() == codes.tolist()
    assert Tones(**CODEC).decode(vocabulary.codes(reply)).seconds == pytest.approx(4 / 12.5)


def test_a_page_shows_what_was_said_and_heard(vocabulary):
    reply = FAMILY.reply("w1 w2 w3 w4 w5 w6 w7", np.arange(3), vocabulary)
    runs = strip(reply, vocabulary.channels(reply), vocabulary)
    assert [(kind, count) for kind, count, _ in runs] == [
        ("text", 7), ("speech", 1), ("end", 1), ("speech", 2), ("boundary", 1),
    ]  # fmt: skip
    assert runs[0][2] == "w1w2w3w4w5w6w7"


def test_a_checkpoint_is_written_as_it_was_read(checkpoint, scorer, tmp_path):
    """Under the released names, with what is not used here, and it loads in plain transformers."""
    with torch.no_grad():
        scorer.model.lm_head.weight.mul_(1.5)
    save_model(scorer.model, checkpoint, tmp_path)
    start, saved = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert start.keys() == saved.keys()
    assert {name for name in start if not torch.equal(start[name], saved[name])} == {"lm_head.weight"}
    assert {name.split(".")[0] for name in saved} == {"model", "lm_head", "mimo_output"}
    assert {"model.vq_adaptor.layers.3.bias", "model.mimo_norm.weight", "model.mimo_layers.1.self_attn.q_proj.bias"} < {
        *saved
    }
    described = json.loads((tmp_path / "config.json").read_text())
    assert (described["architectures"], described["model_type"]) == (["MoonshotKimiaForCausalLM"], "kimi_audio")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True, trust_remote_code=False)
    ids = torch.randint(0, 168448, (1, 12))
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, scorer.model(ids).logits, atol=1e-4)
    other = load_pretrained(checkpoint, FAMILY, dtype=torch.float32, trust_remote_code=False)
    load_model(other, tmp_path)
    assert torch.equal(other.lm_head.weight, scorer.model.lm_head.weight)


def test_the_released_layout_is_taken_in_and_put_back(checkpoint, tmp_path):
    """All of it is trained but what lies beside the model, and nothing has another name."""
    released, trunk, back = tmp_path / "released", tmp_path / "trunk", tmp_path / "back"
    shutil.copytree(checkpoint, released)
    described = json.loads((released / "config.json").read_text())
    described |= {"model_type": "qwen2", "auto_map": {"AutoModelForCausalLM": "modeling_moonshot_kimia.Model"}}
    (released / "config.json").write_text(json.dumps(described))
    weights = load_file(released / "model.safetensors")
    beside = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "speaker.weight": torch.ones(2)}
    save_file(weights | beside, released / "model.safetensors", metadata={"format": "pt"})
    model_class(FAMILY)
    assert import_checkpoint(released, FAMILY.original, FAMILY.name, trunk) == 2
    assert load_file(trunk / "model.safetensors").keys() == weights.keys()
    assert check_checkpoint(trunk, trust_remote_code=False)
    assert Vocabulary.from_checkpoint(trunk, FAMILY.tokens).end_reply == STOP
    model = load_pretrained(trunk, FAMILY, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        model.mimo_output.weight.mul_(2.0)
    save_model(model, trunk, tmp_path / "trained")
    export_checkpoint(tmp_path / "trained", released, FAMILY.original, back)
    written = load_file(back / "model.safetensors")
    assert written.keys() == (weights | beside).keys()
    assert {n for n in written if not torch.equal(written[n], (weights | beside)[n])} == {"mimo_output.weight"}
    assert json.loads((back / "config.json").read_text()) == described
    (released / "config.json").write_text(json.dumps(described | {"kimia_mimo_audiodelaytokens": 5}))
    with pytest.raises(InputError, match="kimia_mimo_audiodelaytokens is 5, not 6"):
        import_checkpoint(released, FAMILY.original, FAMILY.name, tmp_path / "other")


@pytest.fixture(scope="module")
def job(checkpoint, vocabulary, prompts, tmp_path_factory) -> Path:
    """A folder with data and a configuration."""
    directory = tmp_path_factory.mktemp("run")
    asked = [{"id": p.id, "token_ids": p.token_ids, "text": f"question {p.id}", "facts": []} for p in prompts[:12]]
    shown = [
        {
            "prompt_id": p.id,
            "prompt_ids": p.token_ids,
            "reply_ids": FAMILY.reply("w7 w8 w9", np.arange(5) + i, vocabulary),
            "text": "w7 w8 w9",
            "manner": "",
        }
        for i, p in enumerate(prompts[:8])
    ]
    pq.write_table(pa.Table.from_pylist(asked, PROMPTS), directory / "prompts.parquet")
    pq.write_table(pa.Table.from_pylist(asked[:4], PROMPTS), directory / "held_out.parquet")
    pq.write_table(pa.Table.from_pylist(shown, DEMONSTRATIONS), directory / "demonstrations.parquet")
    (directory / "codec.json").write_text(json.dumps(CODEC))
    (directory / "run.yaml").write_text(f"""
run: {{name: kimi, directory: {directory}}}
train: {{num_steps: 2}}
checkpoint: {{interval: 1}}
model: {{path: {checkpoint}, family: kimi-audio, max_model_len: 128}}
data:
  prompts: {directory}/prompts.parquet
  sft: {directory}/demonstrations.parquet
  validation: {{held_out: {directory}/held_out.parquet}}
rollout: {{batch_size: 4, n: 4, max_new_tokens: 64, temperature: 0.8, num_cpus: 0.5}}
reward:
  num_servers: 1
  codec: {{target: 'tests.families.codec:Tones', kwargs: {{path: {directory}}}}}
  functions:
    - {{name: words, target: 'tests.families.raters:Words'}}
    - {{name: sound, target: 'tests.families.raters:Sound'}}
  weights: {{words: 1.0}}
algorithm: {{kl_coef_text: 0.01, kl_coef_speech: 0.01}}
anchor: {{batch_size: 4}}
learner: {{num_workers: 2, num_cpus: 0.25, learning_rate: 1.0e-3, zero_stage: 2}}
validation: {{num_recordings: 1, recording_interval: 0, num_quality_samples: 0}}
""")
    return directory


def test_half_a_step_is_refused_before_anything_starts(job, tmp_path):
    rows = {name: pq.read_table(job / f"{name}.parquet").to_pylist() for name in ("prompts", "demonstrations")}
    rows["prompts"][4]["token_ids"].pop()
    rows["demonstrations"][2]["prompt_ids"].pop()
    for name, schema in (("prompts", PROMPTS), ("demonstrations", DEMONSTRATIONS)):
        pq.write_table(pa.Table.from_pylist(rows[name], schema), tmp_path / f"{name}.parquet")
    half = r"has \d+ tokens, where family kimi-audio has 2 for each step"
    refusals = {
        f"data.prompts={tmp_path}/prompts.parquet": f"prompts.parquet row 5: field 'token_ids' {half}",
        f"data.sft={tmp_path}/demonstrations.parquet": f"row 3: field 'prompt_ids' {half}",
        "rollout.tensor_parallel_size=2": "rollout.tensor_parallel_size: 2, but the engine of family kimi-audio",
    }
    for override, complaint in refusals.items():
        with pytest.raises(InputError, match=complaint):
            read_inputs(load_config(job / "run.yaml", [override]))


@pytest.fixture(scope="module")
def run(root, job, address) -> Path:
    """Two iterations of the real stack, then another that goes on from their checkpoint."""
    done = duet(root, "train", "--config", str(job / "run.yaml"), f"cluster.address={address}")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    again = duet(root, "train", "--resume", str(job / "kimi"), "train.num_steps=3")
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    assert "after iteration 2" in again.stdout
    return job / "kimi"


def test_the_run_trains_both_streams(run, checkpoint):
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert [(row["iteration"], row["weight_version"]) for row in rows] == [(1, 0), (2, 1), (3, 2)]
    for row in rows:
        assert 0.0 < row["lambda"] < 0.8
        assert row["replies"] == 16
        assert max(row["logp_gap_text"], row["logp_gap_speech"], row["probe_gap"]) < 1e-4
        assert row["loss"] == pytest.approx(
            (1 - row["lambda"]) * row["loss_anchor"] + row["lambda"] * row["loss_preference"], abs=1e-5
        )
        assert row["entropy_text"] > 0
        assert row["entropy_speech"] > 0
        assert row["score_sound"] > 1
    assert rows[0]["kl_text"] == pytest.approx(0.0, abs=1e-5)
    assert rows[0]["kl_speech"] == pytest.approx(0.0, abs=1e-5)
    assert rows[2]["kl_text"] > 0
    assert rows[2]["kl_speech"] > 0
    assert rows[2]["loss_anchor"] < rows[0]["loss_anchor"]
    start, end = (load_file(path / "model.safetensors") for path in (checkpoint, run / "checkpoints/000003"))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert {"lm_head.weight", "mimo_output.weight", "model.mimo_layers.0.mlp.up_proj.weight"} < moved


def test_every_reply_is_on_record_with_both_channels(run, vocabulary):
    for iteration in (1, 2, 3):
        rows = pq.read_table(run / f"replies/{iteration:06d}.parquet").to_pylist()
        assert len(rows) == 16
        assert {row["weight_version"] for row in rows} == {iteration - 1}
        for row in rows:
            ids, logps, channels = (np.array(row[name]) for name in ("token_ids", "logps", "channels"))
            assert channels.tolist() == vocabulary.channels(ids).tolist()
            assert np.all(logps[channels < 0] == 0)
            assert np.all(logps[channels == Channel.TEXT] < 0)
            if row["finish"] == "stop":
                assert valid(ids)
                spoken = int((channels == Channel.SPEECH).sum())
                assert dict(row["scores"])["sound"] == pytest.approx(min(5.0, 1 + spoken / 12.5), abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 3
    assert summary["held_out"]["after"]["prompts"] == 4
