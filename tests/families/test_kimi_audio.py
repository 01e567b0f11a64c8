"""Kimi-Audio, two streams side by side: vocabulary and dialogues, the engine against the learner, and whole runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from cluster.parcel import Parcel
from cluster.waiting import MemberBroken
from controller.inputs import read_inputs
from controller.reading import read
from controller.report.takes import strip
from learner.attention import use_packing
from learner.released import put_back, take_in
from learner.rows import Row, collate
from learner.scorer import Scorer
from learner.source import named_weights
from learner.state import load_model, save_model
from learner.step import Objective, Route, micro_batch_loss
from rollout.engine import EngineSettings, HalfTaken, Order, SamplingSettings
from rollout.parallel_engine import ParallelEngine
from rollout.worker import Probe, RolloutWorker
from speech.channels import Channel
from speech.checkpoint import check_checkpoint
from speech.dialogue import Turn
from speech.errors import InputError
from speech.families import family
from speech.interleave import Kind, allowed_sets, check, kind_table
from speech.models import architecture, pretrained
from speech.records import DEMONSTRATIONS, PROMPTS, Finish, Prompt
from speech.vocabulary import Vocabulary
from tests.commands import duet
from tests.families import kimi_checkpoint
from tests.families.codec import Tones

pytestmark = [pytest.mark.families, pytest.mark.timeout(300)]
FAMILY = family("kimi-audio")
SAMPLING = SamplingSettings(temperature=0.8, max_tokens=64)
BEGIN, END, STOP = 151661, 151667, 151663
BLANK, USER, ASSISTANT, SPEAK, OVER = 151666, 151670, 151671, 151676, 151645
FIRST = 152064
DELAY = 6
CODEC = {"rate": 24000, "codebook": 16384, "tokens_per_second": 12.5}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return kimi_checkpoint.write(tmp_path_factory.mktemp("kimi"))


@pytest.fixture(scope="module")
def vocabulary(checkpoint) -> Vocabulary:
    return Vocabulary.from_checkpoint(checkpoint, FAMILY.tokens)


def settings(checkpoint: Path, **changes) -> EngineSettings:
    usual = EngineSettings(
        checkpoint=str(checkpoint),
        dtype="float32",
        max_length=128,
        max_sequences=128,
        constrained=True,
        in_process=True,
        threads=1,
        kv_cache_gib=1,
        gpu_memory_share=0.9,
        tensor_parallel=1,
    )
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def engine(checkpoint, vocabulary) -> ParallelEngine:
    return ParallelEngine(settings(checkpoint), FAMILY, vocabulary)


@pytest.fixture(scope="module")
def prompts(vocabulary) -> list[Prompt]:
    """Of several lengths."""
    turns = [Turn(role="user", text="w9 w8" if i % 2 else None, codes=np.arange(i, i + 3 + i % 7)) for i in range(250)]
    return [
        Prompt(id=str(i), text="", facts={}, token_ids=FAMILY.prompt([turn], vocabulary))
        for i, turn in enumerate(turns)
    ]


@pytest.fixture(scope="module")
def groups(engine, prompts):
    """1,000 replies."""
    return engine.sample(prompts, 4, SAMPLING, list(range(0, 4 * len(prompts), 4)), "w")


@pytest.fixture
def scorer(checkpoint, vocabulary) -> Scorer:
    model = pretrained(checkpoint, FAMILY, dtype=torch.float32, trust_remote_code=False)
    use_packing(model)
    return Scorer(model, torch.from_numpy(kind_table(vocabulary)))


def rows_of(group, kinds: np.ndarray, **fields) -> list[Row]:
    return [
        Row(
            prompt_ids=group.prompt.token_ids,
            reply_ids=r.token_ids,
            channels=r.channels,
            allowed=allowed_sets(r.token_ids, FAMILY.interleave, kinds),
            behaviour=r.logps,
            **({"advantages": (1.0,), "weights": (1.0,)} | fields),
        )
        for r in group.replies
    ]


def gap(group, scorer: Scorer, vocabulary: Vocabulary) -> float:
    """Largest difference between what the sampler reported and what the learner computes, of all tokens of a group."""
    rows = rows_of(group, kind_table(vocabulary))
    batch = collate(rows, routes=1, temperature=SAMPLING.temperature, device=torch.device("cpu"), streams=2)
    with torch.no_grad():
        logp, _ = scorer(**batch.scoring())
    return (batch.dense(logp) - batch.behaviour).abs().max().item()


def valid(ids: np.ndarray) -> bool:
    """What a reply is, written down once more."""
    if len(ids) % 2:
        return False
    text, speech = ids.reshape(-1, 2).T.tolist()
    if END not in text or len(speech) < DELAY + 2:
        return False
    said, rest = text[: text.index(END)], text[text.index(END) + 1 :]
    return (
        bool(said)
        and max(said) < kimi_checkpoint.WORDS
        and set(rest) <= {BLANK}
        and set(speech[:DELAY]) <= {BLANK}
        and speech[-1] == STOP
        and all(FIRST <= token < FIRST + 16384 for token in speech[DELAY:-1])
    )


def test_ids_are_those_of_the_released_tokenizer(vocabulary):
    assert (vocabulary.end_reply, vocabulary.end_text, vocabulary.blank) == (STOP, END, BLANK)
    assert (vocabulary.speech_first, vocabulary.codebook, vocabulary.size) == (FIRST, 16384, 168448)
    channels = vocabulary.channel_table()
    assert channels[[5, FIRST, 168447, END, STOP]].tolist() == [
        Channel.TEXT, Channel.SPEECH, Channel.SPEECH, Channel.END, Channel.BOUNDARY,
    ]  # fmt: skip
    specials = set(range(kimi_checkpoint.WORDS, FIRST)) - {END, STOP}
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
    assert check(reply, FAMILY.interleave, kind_table(vocabulary)) is None
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


def test_a_thousand_replies_keep_to_the_structure(groups):
    replies = [reply for group in groups for reply in group.replies]
    assert len(replies) == 1000
    ended = [reply for reply in replies if reply.finish == Finish.STOP]
    assert len(ended) > 800
    assert [reply.defect for reply in ended if reply.defect] == []
    assert all(valid(reply.token_ids) for reply in ended)
    assert {reply.defect for reply in replies if reply.finish == Finish.LENGTH} == {"the reply has no end"}
    assert max(len(reply.token_ids) for reply in replies) == SAMPLING.max_tokens
    assert len({len(reply.token_ids) for reply in replies}) > 10
    for reply in replies:
        chosen = reply.channels >= 0
        assert np.all(reply.logps[~chosen] == 0.0)
        assert np.all(reply.token_ids[~chosen] == BLANK)
        assert reply.logps[chosen].max() <= 0.0


def test_one_that_is_not_valid_is_marked(groups, checkpoint, vocabulary, prompts):
    """Replies of which a token is another, and those of an engine that is not held to the structure."""
    rng, kinds = np.random.default_rng(0), kind_table(vocabulary)
    verdicts = []
    for group in groups:
        ids = group.replies[0].token_ids.copy()
        ids[rng.integers(len(ids))] = rng.choice([3, 1000, BLANK, END, STOP, OVER, FIRST, FIRST + 16383])
        verdicts.append(valid(ids))
        assert (check(ids, FAMILY.interleave, kinds) is None) == verdicts[-1]
    assert 10 < sum(verdicts) < 240
    free = ParallelEngine(settings(checkpoint, constrained=False), FAMILY, vocabulary)
    drawn = [r for g in free.sample(prompts[:8], 4, replace(SAMPLING, max_tokens=20), [0] * 8, "w") for r in g.replies]
    assert all((reply.defect is None) == valid(reply.token_ids) for reply in drawn)
    assert sum(reply.defect is not None for reply in drawn) > 30
    assert all(len(reply.token_ids) % 2 == 0 and np.isfinite(reply.logps).all() for reply in drawn)


def test_the_distribution_sampled_is_the_distribution_scored(groups, scorer, vocabulary):
    """Of both streams, temperature and structure included."""
    assert max(gap(group, scorer, vocabulary) for group in groups[:10]) < 1e-4


def test_tokens_come_as_often_as_their_probability_says(engine, prompts, scorer, vocabulary):
    """The end of the text, after one word: how often it comes against how likely it is said to be."""
    [group] = engine.sample(prompts[:1], 400, replace(SAMPLING, max_tokens=4), [0], "w")
    text = int(Kind.TEXT | Kind.END_TEXT)
    prompt, wanted = group.prompt.token_ids, []
    # What stands in the place of the first step's text gives what the second one's is drawn from.
    given = [torch.tensor([value]) for value in (len(prompt), END, text, SAMPLING.temperature)]
    for reply in group.replies:
        ids = torch.from_numpy(np.concatenate([prompt, reply.token_ids[:2]]).astype(np.int64))
        with torch.no_grad():
            wanted.append(scorer(ids[None], *given)[0].exp().item())
    ended = [reply.token_ids[2] == END for reply in group.replies]
    error = np.sqrt(np.sum([p * (1 - p) for p in wanted]))
    assert abs(sum(ended) - sum(wanted)) < 4 * error
    assert 5 < sum(ended) < 395


def test_replies_are_the_same_whoever_is_drawn_beside_them(checkpoint, vocabulary, prompts, groups, scorer):
    """Three rows for forty replies: taken up one by one, moved, prompts computed once or copied."""
    few = ParallelEngine(settings(checkpoint, max_sequences=3), FAMILY, vocabulary)
    again = few.sample(prompts[:10], 4, SAMPLING, list(range(0, 40, 4)), "w")
    for one, other in zip(again, groups, strict=False):
        for a, b in zip(one.replies, other.replies, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
        assert gap(one, scorer, vocabulary) < 1e-4


def test_weights_change_under_replies_that_are_under_way(checkpoint, vocabulary, prompts, scorer, tmp_path):
    engine = ParallelEngine(settings(checkpoint), FAMILY, vocabulary)
    sequences = [
        np.concatenate([prompts[i].token_ids, FAMILY.reply("w1 w2", np.arange(4), vocabulary)]) for i in (0, 1)
    ]
    before = engine.probe(sequences)
    assert [len(found) for found in before] == [len(ids) - 2 for ids in sequences]
    order = Order(number=7, prompt=prompts[0], group_size=4, sampling=replace(SAMPLING, max_tokens=40), seed=0)
    engine.submit([order])
    for _ in range(3):
        engine._step()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = {name: parameter.detach().clone() for name, parameter in named_weights(scorer.model)}
    save_file(weights, tmp_path / "w.safetensors")
    engine.load_weights([tmp_path / "w.safetensors"], 5)
    drawn = engine.turn(60.0, "w")
    assert [number for number, _ in drawn] == [7] * 4
    assert {(reply.weight_version, reply.newest_version) for _, reply in drawn} == {(0, 5)}
    after = engine.probe(sequences)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0.1
    for ids, found in zip(sequences, after, strict=True):
        inputs = torch.from_numpy(ids.astype(np.int64))
        sources = torch.arange(len(ids) - 2)
        with torch.no_grad():
            logps, _ = scorer(inputs[None], sources, inputs[2:], torch.zeros_like(sources), torch.ones(len(sources)))
        assert np.abs(logps.numpy() - found).max() < 1e-4
    [group] = engine.sample(prompts[1:2], 4, SAMPLING, [0], "w")
    assert {reply.weight_version for reply in group.replies} == {5}
    assert gap(group, scorer, vocabulary) < 1e-4
    engine.submit([order])
    engine.abandon()
    assert engine.turn(1.0, "w") == []
    part = {"model.mimo_norm.weight": weights["model.mimo_norm.weight"] * 2}
    save_file(part, tmp_path / "part.safetensors")
    engine.load_weights([tmp_path / "part.safetensors"], 6, whole=False)
    assert engine.weight_version == 6
    with pytest.raises(HalfTaken, match=r"weights 7 were not taken to the end: .*nothing came for"):
        engine.load_weights([tmp_path / "part.safetensors"], 7)
    save_file({"model.strange": torch.zeros(1)}, tmp_path / "strange.safetensors")
    with pytest.raises(HalfTaken, match="strange"):
        engine.load_weights([tmp_path / "strange.safetensors"], 8)
    assert engine.weight_version == 6


def test_what_does_not_fit_is_refused(checkpoint, vocabulary, engine, prompts):
    for count in (127, 128):
        ids = np.full(count, BLANK, dtype=np.int32)
        with pytest.raises(ValueError, match=f"has {count} tokens; 2 for each step, and at most 126"):
            engine.submit(
                [Order(number=0, prompt=replace(prompts[0], token_ids=ids), group_size=1, sampling=SAMPLING, seed=0)]
            )
    with pytest.raises(InputError, match=r"rollout.kv_cache_gib: no room"):
        ParallelEngine(settings(checkpoint, kv_cache_gib=1e-6), FAMILY, vocabulary)
    with pytest.raises(InputError, match=r"rollout.tensor_parallel: 2"):
        ParallelEngine(settings(checkpoint, tensor_parallel=2), FAMILY, vocabulary)


@pytest.mark.parametrize(("channel", "reached"), [("text", False), ("all", True)], ids=["wavalign", "full"])
def test_preference_reaches_the_speech_branch_only_where_it_is_asked_to(groups, scorer, vocabulary, channel, reached):
    objective = Objective(
        routes=(Route(channel=channel, weight=1.0),), clip=0.2, clip_high=0.2, ratio="truncated", cap=2.0,
        kl_text=0.0, kl_speech=0.0, boundary="speech", anchor_text=1.0, anchor_speech=1.0,
    )  # fmt: skip
    rows = [row for group in groups[:4] for row in rows_of(group, kind_table(vocabulary))]
    batch = collate(
        rows, routes=1, temperature=SAMPLING.temperature, device=torch.device("cpu"), streams=2,
        scored=lambda item, row: objective.scored(row.channels, item, row),
    )  # fmt: skip
    loss, _ = micro_batch_loss(batch, *scorer(**batch.scoring()), None, objective, mix=1.0)
    loss.backward()
    size = {name: p.grad.abs().max().item() for name, p in scorer.model.named_parameters() if p.grad is not None}
    assert size["lm_head.weight"] > 0
    assert size["model.layers.0.mlp.up_proj.weight"] > 0
    assert (size["mimo_output.weight"] > 0) == reached
    assert (size["model.mimo_layers.0.mlp.up_proj.weight"] > 0) == reached


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
    other = pretrained(checkpoint, FAMILY, dtype=torch.float32, trust_remote_code=False)
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
    architecture(FAMILY)
    assert take_in(released, FAMILY.original, FAMILY.name, trunk) == 2
    assert load_file(trunk / "model.safetensors").keys() == weights.keys()
    assert check_checkpoint(trunk, trust_remote_code=False)
    assert Vocabulary.from_checkpoint(trunk, FAMILY.tokens).end_reply == STOP
    model = pretrained(trunk, FAMILY, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        model.mimo_output.weight.mul_(2.0)
    save_model(model, trunk, tmp_path / "trained")
    put_back(tmp_path / "trained", released, FAMILY.original, back)
    written = load_file(back / "model.safetensors")
    assert written.keys() == (weights | beside).keys()
    assert {n for n in written if not torch.equal(written[n], (weights | beside)[n])} == {"mimo_output.weight"}
    assert json.loads((back / "config.json").read_text()) == described
    (released / "config.json").write_text(json.dumps(described | {"kimia_mimo_audiodelaytokens": 5}))
    with pytest.raises(InputError, match="kimia_mimo_audiodelaytokens is 5, not 6"):
        take_in(released, FAMILY.original, FAMILY.name, tmp_path / "other")


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
run: {{name: kimi, directory: {directory}, iterations: 2, checkpoint_every: 1}}
model: {{checkpoint: {checkpoint}, family: kimi-audio, max_length: 128}}
data:
  prompts: {directory}/prompts.parquet
  demonstrations: {directory}/demonstrations.parquet
  held_out: {{held_out: {directory}/held_out.parquet}}
rollout: {{prompts: 4, group_size: 4, max_tokens: 64, cpus: 0.5}}
reward:
  servers: 1
  codec: {{use: 'tests.families.codec:Tones', arguments: {{path: {directory}}}}}
  raters:
    - {{name: words, use: 'tests.families.raters:Words'}}
    - {{name: sound, use: 'tests.families.raters:Sound'}}
  total: {{words: 1.0}}
preference: {{kl_text: 0.01, kl_speech: 0.01}}
anchor: {{rows: 4}}
learner: {{ranks: 2, cpus: 0.25, learning_rate: 1.0e-3, zero_stage: 2}}
evaluation: {{recordings: 1, listen_every: 0, signal_samples: 0}}
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
        f"data.demonstrations={tmp_path}/demonstrations.parquet": f"row 3: field 'prompt_ids' {half}",
        "rollout.tensor_parallel=2": "rollout.tensor_parallel: 2, but the engine of family kimi-audio",
    }
    for override, complaint in refusals.items():
        with pytest.raises(InputError, match=complaint):
            read_inputs(read(job / "run.yaml", [override]))


def test_a_worker_takes_the_engine_of_the_family(checkpoint, vocabulary, prompts, scorer, tmp_path):
    """Without Ray: what it draws, and that it proves to hold the weights that it was given."""
    worker = RolloutWorker("rollout-0", settings(checkpoint), FAMILY, 0, "127.0.0.1", "127.0.0.1")
    assert worker.warm_up(prompts[:1], 2, SAMPLING) == "rollout-0"
    too_long = replace(prompts[1], token_ids=np.full(128, BLANK, dtype=np.int32))
    orders = [
        Order(number=number, prompt=prompt, group_size=2, sampling=SAMPLING, seed=0)
        for number, prompt in enumerate([prompts[0], too_long])
    ]
    drawn = worker.turn(orders, 60.0)
    assert [number for number, _ in drawn.replies] == [0, 0]
    assert [number for number, _ in drawn.refused] == [1]
    with torch.no_grad():
        scorer.model.mimo_output.weight.mul_(1.1)
    weights = {name: parameter.detach().clone() for name, parameter in named_weights(scorer.model)}
    save_file(weights, tmp_path / "w.safetensors")
    ids = np.concatenate([prompts[0].token_ids, FAMILY.reply("w1", np.arange(3), vocabulary)])
    inputs, sources = torch.from_numpy(ids.astype(np.int64)), torch.arange(len(ids) - 2)
    with torch.no_grad():
        logps, _ = scorer(inputs[None], sources, inputs[2:], torch.zeros_like(sources), torch.ones(len(sources)))
    parcel = Parcel(version=1, size=1, whole=True, path=tmp_path / "w.safetensors")
    report = worker.update(parcel, 0.5, Probe(sequences=[ids], logps=[logps.numpy()]))
    assert report.version == 1
    assert report.probe_gap < 1e-4
    assert worker.state() == {"name": "rollout-0", "weight_version": 1, "mix": 0.5, "metrics": None}
    save_file({"strange": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(MemberBroken, match="weights 2 were not taken to the end"):
        worker.update(replace(parcel, version=2), 0.5, Probe(sequences=[], logps=[]))


@pytest.fixture(scope="module")
def run(root, job) -> Path:
    """Two iterations of the real stack, then another that goes on from their checkpoint."""
    done = duet(root, "train", "--config", str(job / "run.yaml"))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    again = duet(root, "train", "--resume", str(job / "kimi"), "run.iterations=3")
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
                assert row["score_sound"] == pytest.approx(min(5.0, 1 + spoken / 12.5), abs=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 3
    assert summary["held_out"]["after"]["prompts"] == 4
