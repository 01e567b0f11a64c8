"""Each family from its released layout through the real stack and back, with a tiny checkpoint of its architecture."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from data.records import DEMONSTRATIONS, FEATURES, PROMPTS
from duet.__main__ import main
from speech.audio import write_features
from speech.families import Family, family
from speech.grammar import check_reply_grammar, token_kinds
from speech.types import Prompt, Turn
from speech.vocabulary import Channel, Vocabulary
from tests.commands import duet
from tests.families.sampling import REPLIES, Asked
from tests.families.tiny import MAKERS, WIDTH

pytestmark = [pytest.mark.families, pytest.mark.timeout(400)]
ROWS, FRAMES = 16, 12
IN_PROCESSES = "qwen2.5-omni"
"""The family whose commands are started as a user starts them. For the others their code runs in the test's process."""
RATES = {16384: (22050, 12.5), 6561: (24000, 25.0)}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"families-{name}")) for name in sorted(MAKERS)],
)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def chosen(name) -> Family:
    return family(name)


@pytest.fixture(scope="module")
def released(name, tmp_path_factory) -> Path:
    return MAKERS[name](tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def command(root, name) -> Callable[..., None]:
    """Runs a command that starts nothing; it has to succeed."""

    def as_process(*arguments: str) -> None:
        done = duet(root, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def in_here(*arguments: str) -> None:
        assert main(list(arguments)) == 0

    return as_process if name == IN_PROCESSES else in_here


@pytest.fixture(scope="module")
def trunk(command, name, released, tmp_path_factory) -> Path:
    """The released checkpoint, taken in by the command."""
    directory = tmp_path_factory.mktemp("imported") / name
    command("import", str(released), f"--family={name}", f"--to={directory}")
    return directory


@pytest.fixture(scope="module")
def vocabulary(trunk, chosen) -> Vocabulary:
    return Vocabulary.from_checkpoint(trunk, chosen.tokens)


@pytest.fixture(scope="module")
def data(chosen, vocabulary, tmp_path_factory) -> Path:
    """Prompts and demonstrations as the family writes them, with features where it hears them, and a codec."""
    directory = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    rows: list[tuple[dict, dict]] = []
    for number in range(ROWS):
        turn, features = Turn(role="user", codes=generator.integers(0, max(1, vocabulary.codebook), 10)), None
        if chosen.hears == "features":
            turn, features = Turn(role="user", features=FRAMES), f"features/{number}.npy"
            write_features(directory / features, generator.normal(0.0, 0.3, (FRAMES, WIDTH)).astype(np.float32))
        ids = chosen.prompt([turn], vocabulary)
        reply = chosen.reply(f"answer {number}", generator.integers(0, max(1, vocabulary.codebook), 40), vocabulary)
        prompt = {"id": f"p{number}", "token_ids": ids, "text": f"question {number}", "facts": [], "features": features}
        demonstration = {"prompt_id": f"p{number}", "prompt_ids": ids, "reply_ids": reply, "text": f"answer {number}"}
        rows.append((prompt, demonstration | {"manner": "", "features": features}))
    for place, schema in enumerate((PROMPTS, DEMONSTRATIONS)):
        table = pa.Table.from_pylist([row[place] for row in rows], schema=schema.append(FEATURES))
        pq.write_table(table, directory / ("prompts.parquet", "demonstrations.parquet")[place])
    if vocabulary.codebook:
        rate, speed = RATES[vocabulary.codebook]
        facts = {"rate": rate, "codebook": vocabulary.codebook, "tokens_per_second": speed}
        (directory / "codec.json").write_text(json.dumps(facts))
    return directory


def _settings(name: str, trunk: Path, data: Path, codebook: int) -> list[str]:
    raters = ["words", "sound"] if codebook else ["words"]
    codec = "tests.families.codec:Tones" if codebook else "speech.codecs.base:NoSpeech"
    made = ", ".join(f"{{name: {r}, target: 'tests.families.raters:{r.capitalize()}'}}" for r in raters)
    return [
        f"model.path={trunk}", f"model.family={name}", "model.max_model_len=512",
        f"data.prompts={data / 'prompts.parquet'}", f"data.sft={data / 'demonstrations.parquet'}",
        "data.validation={}", f"reward.codec={{target: '{codec}', kwargs: {{path: {data}}}}}",
        f"reward.functions=[{made}]",
        "reward.weights={words: 1.0}", "reward.composites={}", "reward.audio_quality_fn=''",
        "reward.num_servers=1", "rollout.batch_size=4", "rollout.max_new_tokens=40", "anchor.batch_size=2",
        "validation.recording_interval=0",
        "train.num_steps=2", "checkpoint.interval=0", "rollout.max_num_seqs=16", "learner.learning_rate=1e-3",
        "learner.num_workers=1",
        "mix_ratio.schedule=fixed", "mix_ratio.value=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(root, name, trunk, data, vocabulary, address, tmp_path_factory) -> Path:
    """Two iterations of the main job."""
    directory = tmp_path_factory.mktemp("runs")
    settings = _settings(name, trunk, data, vocabulary.codebook)
    done = duet(root, "train", f"run.directory={directory}", "run.name=tiny", f"cluster.address={address}", *settings)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return directory / "tiny"


@pytest.fixture(scope="module")
def exported(command, run, tmp_path_factory) -> Path:
    """Its checkpoint, as transformers and vLLM read it."""
    directory = tmp_path_factory.mktemp("exported") / "plain"
    command("export", str(run), f"--to={directory}")
    return directory


def test_ids_are_the_released_ones(name, vocabulary):
    """Facts of the models' own sources."""
    ids = vocabulary.tokenizer.token_to_id
    if name.startswith("vita-audio"):
        plus = name.endswith("plus")
        assert (vocabulary.begin_speech, vocabulary.end_speech) == (151674, 151675)
        assert (vocabulary.speech_first, vocabulary.size) == (151685 + plus, 168072)
        assert (vocabulary.end_reply, vocabulary.pad) == (151645, 151643)
    elif name == "glm-4-voice":
        assert (vocabulary.speech_first, vocabulary.end_reply, vocabulary.size) == (152353, 151336, 168960)
        assert ids("<sop>") == 151333
    elif name == "step-audio-2":
        assert (vocabulary.speech_first, vocabulary.codebook) == (151696, 6561)
        assert ids("<audio_6561>") in vocabulary.fillers
    else:
        assert (vocabulary.codebook, vocabulary.end_reply) == (0, 151645)


def test_a_demonstration_follows_the_structure(chosen, vocabulary, data):
    kinds = token_kinds(vocabulary)
    for row in pq.read_table(data / "demonstrations.parquet").to_pylist():
        assert check_reply_grammar(np.array(row["reply_ids"]), chosen.interleave, kinds) is None
        assert vocabulary.text(np.array(row["reply_ids"])) == row["text"]


def test_two_iterations_of_the_main_job(run, chosen, vocabulary):
    rows = pq.read_table(run / "iterations.parquet").to_pylist()
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        assert row["logp_gap_text"] < 1e-4
        assert row["probe_gap"] < 1e-4
        assert row["lambda"] == 0.5
        assert np.isfinite([row["loss_preference"], row["loss_anchor"], row["gradient_norm"]]).all()
        if vocabulary.codebook:
            assert row["logp_gap_speech"] < 1e-4
    assert rows[1]["loss_preference"] != 0.0  # in the first iteration advantages cancel, and there is no KL
    replies = []
    for iteration in (1, 2):
        replies += (drawn := pq.read_table(run / f"replies/{iteration:06d}.parquet").to_pylist())
        assert any(advantage != 0.0 for reply in drawn for _, advantage in reply["advantages"])
    channels = {channel for reply in replies for channel in reply["channels"]}
    assert channels >= {Channel.TEXT, *([Channel.SPEECH] if "speech" in chosen.trained else [])}
    assert all(len(reply["logps"]) == len(reply["token_ids"]) for reply in replies)


def test_what_was_trained_comes_out_as_released(command, name, run, released, exported, tmp_path):
    """What is no part of the trunk is untouched; what is was trained; and taken in again it is the run's checkpoint."""
    command("export", str(run), f"--to={tmp_path / 'released'}", "--released")
    before, after = _tensors(released), _tensors(tmp_path / "released")
    assert before.keys() == after.keys()
    chosen = family(name)
    config = json.loads((released / "config.json").read_text())
    assert json.loads((tmp_path / "released/config.json").read_text()) == config
    for tensor, value in before.items():
        changed = not np.array_equal(value, after[tensor])
        assert changed == bool(chosen.original.parts(tensor, config)), tensor
    command("import", str(tmp_path / "released"), f"--family={name}", f"--to={tmp_path / 'again'}")
    plain, again = _tensors(exported), _tensors(tmp_path / "again")
    assert all(np.array_equal(plain[tensor], again[tensor]) for tensor in again)


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    return {n: t.float().numpy() for file in directory.glob("*.safetensors") for n, t in load_file(file).items()}


def test_an_exported_checkpoint_says_the_same_in_transformers_and_vllm(name, exported, data, processes):
    """Plain transformers against the worker's engine on the same checkpoint, and its replies against the automaton
    (`tests.families.sampling`)."""
    prompts = [
        Prompt(
            id=row["id"], token_ids=np.array(row["token_ids"], np.int32), text="", facts={},
            features=None if row["features"] is None else str(data / row["features"]),
        )
        for row in pq.read_table(data / "prompts.parquet").to_pylist()
    ]  # fmt: skip
    found = processes.ask(Asked(family=name, checkpoint=str(exported), prompts=prompts))
    assert found.gap < 1e-4
    assert found.held == [None] * REPLIES
    wrong = [defect for defect in found.free if defect is not None]
    assert found.free_checked == found.free
    assert wrong or name in ("step-audio-2", "qwen2.5-omni"), "random weights keep to no pattern by themselves"
