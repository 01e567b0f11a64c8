"""`duet diagnose` end to end, on a small run of the playground."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config
from duet.__main__ import execute
from evaluation.diagnosis.gradient_geometry import log_probabilities
from evaluation.diagnosis.models import load
from evaluation.diagnosis.run_data import RunFiles
from speech.grammar import TokenKind

NAN = float("nan")


@pytest.fixture(scope="module")
def config(root) -> Config:
    """Load the shipped configuration with absolute paths."""
    found = load_config(root / "configs" / "playground.yaml", ["run.seed=3"])
    found.model.path = str(root / found.model.path)
    found.data.prompts = str(root / found.data.prompts)
    found.data.sft = str(root / found.data.sft)
    return found


def diagnose(*arguments: object) -> Path:
    """Run `duet diagnose` in this process and return the page that it wrote."""
    return execute(["diagnose", *map(str, arguments)])


@pytest.fixture(scope="module")
def directory(config, tmp_path_factory):
    """Write a run of two iterations (four groups of two) and a checkpoint with changed text rows in the output layer.

    Replies come from demonstrations, which follow the structure. The start model scores them like its sampler.
    """
    path = tmp_path_factory.mktemp("runs") / "small"
    (path / "replies").mkdir(parents=True)
    (path / "config.yaml").write_text(config.yaml())
    files = RunFiles.open(path)
    demonstrations = pq.read_table(config.data.sft).slice(0, 16).to_pylist()
    write_replies(files, demonstrations, None)
    items = files.replies([1, 2], 16)
    scorer = load(Path(config.model.path), files.family, "float32", files.kinds)
    write_replies(files, demonstrations, log_probabilities(scorer, [i.passage for i in items]))
    with torch.no_grad():
        text = torch.from_numpy(files.kinds == int(TokenKind.TEXT))
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(scorer.model.lm_head.weight[text].shape, generator=generator)
        scorer.model.lm_head.weight[text] += 0.05 * noise
    scorer.model.save_pretrained(path / "checkpoints" / "000002")
    names = ("iteration", "lambda", "lambda_raw", "gate_quality", "gate_information")
    pq.write_table(
        pa.Table.from_pylist([dict(zip(names, (n, 0.2, 0.3, 0.9, 0.4), strict=True)) for n in (1, 2)]),
        path / "iterations.parquet",
    )
    return path


def write_replies(files: RunFiles, demonstrations: list[dict], logps: list[np.ndarray] | None) -> None:
    rng = np.random.default_rng(5)
    for iteration in (1, 2):
        rows = []
        for place in range(8):
            index = (iteration - 1) * 8 + place
            ids = demonstrations[index]["reply_ids"]
            answer, manner = float(rng.choice([1.0, 5.0])), float(rng.uniform(1, 5))
            rows.append(
                {
                    "iteration": iteration,
                    "prompt_id": demonstrations[index - index % 2]["prompt_id"],
                    "index": index % 2,
                    "worker": "rollout-0",
                    "weight_version": iteration - 1,
                    "token_ids": ids,
                    "channels": files.vocabulary.channels(np.array(ids)).tolist(),
                    "logps": [NAN] * len(ids) if logps is None else logps[index].tolist(),
                    "total": None if place == 7 else 0.5 * answer + 0.5 * manner,
                    "scores": [("answer", answer)] if place == 7 else [("answer", answer), ("manner", manner)],
                    "missing": [("manner", "no speech")] if place == 7 else [],
                }
            )
        words = pa.map_(pa.string(), pa.string())
        schema = pa.schema(
            [
                *[(n, pa.int64()) for n in ("iteration", "index", "weight_version")],
                *[(n, pa.string()) for n in ("prompt_id", "worker")],
                *[(n, pa.list_(pa.int32())) for n in ("token_ids", "channels")],
                ("logps", pa.list_(pa.float32())),
                ("total", pa.float32()),
                ("scores", pa.map_(pa.string(), pa.float32())),
                ("missing", words),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), files.directory / f"replies/{iteration:06d}.parquet")


@pytest.fixture(scope="module")
def diagnosed(directory):
    diagnose(directory, "--replies", 8)
    return directory / "diagnosis"


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def test_the_page_has_every_section_and_its_plots(diagnosed):
    page = (diagnosed / "diagnosis.md").read_text()
    for title in ("Gradients of text and of speech", "Δlogp", "Variance of scores", "Rank agreement", "λ and what"):
        assert f"## {title}" in page
    assert "Not measured" not in page
    assert f"duet diagnose {diagnosed.parent} --replies 8" in page
    for name in ("gradients", "shift", "variance", "lambda_parts"):
        assert f"({name}.png)" in page
        assert (diagnosed / f"{name}.png").stat().st_size > 10_000


def test_gradients_are_measured_at_both_models_and_their_layers_add_up(diagnosed):
    table = rows(diagnosed / "gradients.parquet")
    wholes = [row for row in table if row["layer"] == "overall"]
    assert [(row["model"], row["loss"], row["material"]) for row in wholes] == [
        ("the start", "preference", "replies of iteration 1"),
        ("the start", "anchor", "demonstrations"),
        ("iteration 2", "preference", "replies of iteration 2"),
        ("iteration 2", "anchor", "demonstrations"),
    ]
    for whole in wholes:
        parts = [r for r in table if r["layer"] != "overall" and all(r[k] == whole[k] for k in ("model", "loss"))]
        for name in ("norm_text", "norm_speech"):
            assert whole[name] > 0
            assert sum(row[name] ** 2 for row in parts) == pytest.approx(whole[name] ** 2)
        assert whole["ratio"] == pytest.approx(whole["norm_text"] / whole["norm_speech"])
        assert -1 <= whole["cosine"] <= 1
    head = next(row for row in table if row["layer"] == "lm_head" and row["loss"] == "preference")
    assert head["cosine"] == pytest.approx(0.0, abs=1e-6)


def test_replies_score_as_the_sampler_reported(diagnosed):
    """Scoring uses the sampler's allowed tokens and temperature."""
    page = (diagnosed / "diagnosis.md").read_text()
    found = re.search(r"the 8 replies that its own weights sampled are within (\S+) nats", page)
    assert found is not None
    assert float(found[1]) < 1e-3
    assert "8 of 8 replies were sampled by neighbouring weights (versions 1 to 1, not 2)" in page


def test_only_the_channel_that_was_moved_shifts(diagnosed):
    table = {(row["material"], row["channel"]): row for row in rows(diagnosed / "shift.parquet")}
    text, speech = (table["replies of iteration 2", channel] for channel in ("text", "speech"))
    assert text["absolute"] > 0.01
    # Speech is scored over speech and boundary tokens only. Their rows did not change.
    assert speech["absolute"] < 1e-5
    assert table["replies of iteration 2", "end"]["forced"] == 8
    assert ("demonstrations", "text") in table
    tokens = rows(diagnosed / "shift_tokens.parquet")
    moved = [r["shift"] for r in tokens if (r["material"], r["channel"]) == ("replies of iteration 2", "text")]
    assert len(moved) == text["tokens"]
    assert np.mean(moved) == pytest.approx(text["mean"])


def test_scores_that_are_missing_leave_their_group(diagnosed):
    table = {row["rater"]: row for row in rows(diagnosed / "variance.parquet")}
    assert set(table) == {"answer", "manner", "total"}
    assert (table["answer"]["groups"], table["manner"]["groups"], table["manner"]["unscored"]) == (8, 6, 2)
    assert [row["lambda"] for row in rows(diagnosed / "lambda.parquet")] == [0.2, 0.2]
    assert len(rows(diagnosed / "gates.parquet")) == 6


def copy(directory: Path, to: Path, *parts: str) -> Path:
    """Copy a run with these parts only."""
    to.mkdir()
    for part in parts:
        source = directory / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, to / part)
    return to


def test_without_a_checkpoint_the_start_is_measured(directory, tmp_path):
    lone = copy(directory, tmp_path / "lone", "config.yaml", "replies")
    page = diagnose(lone, "--replies", 4).read_text()
    assert "Preference at the start, 4 replies of iteration 1" in page
    assert "## Δlogp against the start model\n\nNot measured." in page
    assert "contains no checkpoint to compare the start with" in page
    assert "No recorded λ_raw to compare with." in page
    assert "## Rank agreement with total\n\nNearest" in page


def test_without_models_and_data_the_scores_are_there(directory, tmp_path, config):
    lone = copy(directory, tmp_path / "lone", "config.yaml", "replies")
    moved = (lone / "config.yaml").read_text().replace(config.model.path, "/nowhere/base")
    (lone / "config.yaml").write_text(moved)
    page = diagnose(lone, "--reference", "answer").read_text()
    assert "/nowhere/base is not a checkpoint with a tokenizer" in page
    assert page.count("Not measured.") == 2
    assert "| manner |" in page
    assert "## Rank agreement with answer" in page


def test_without_replies_everything_says_so(directory, tmp_path):
    lone = copy(directory, tmp_path / "lone", "config.yaml")
    page = diagnose(lone, "--checkpoint", "start", "--replies", 2).read_text()
    assert "Anchor at the start, 2 demonstrations" in page
    assert "No replies to measure at the start: the run has sampled none." in page
    assert page.count("holds no replies.") == 3


def test_only_what_was_asked_for_is_measured(directory, tmp_path):
    lone = copy(directory, tmp_path / "lone", "config.yaml", "replies", "checkpoints")
    diagnose(lone, "--checkpoint", "2", "--replies", 2)
    assert {row["model"] for row in rows(lone / "diagnosis/gradients.parquet")} == {"iteration 2"}
    assert rows(lone / "diagnosis/shift.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "7"], "--checkpoint: '7' is not allowed; use start, last, .* \\(2\\)"),
        (["--reference", "judge"], "--reference: no scores of 'judge'; this run has answer, manner, total"),
        (["--replies", "1"], "--replies: '1' is not allowed; input should be greater than or equal to 2"),
    ],
)
def test_options_that_the_run_has_nothing_for_are_refused(directory, arguments, message):
    with pytest.raises(InputError, match=message):
        diagnose(directory, *arguments)


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not the directory of a run: it has no"):
        diagnose(tmp_path)


def test_a_rated_demonstration_is_no_member_of_its_group(directory, tmp_path):
    lone = copy(directory, tmp_path / "lone", "config.yaml", "replies")
    path = lone / "replies/000001.parquet"
    table = pq.read_table(path, partitioning=None)
    [compared] = table.slice(1, 1).to_pylist()
    compared |= {"index": 2, "worker": "demonstration", "weight_version": -1, "total": 5.0}
    more = pa.Table.from_pylist([compared], schema=table.schema)
    pq.write_table(pa.concat_tables([table.slice(0, 2), more, table.slice(2)]), path)
    before, after = RunFiles.open(directory), RunFiles.open(lone)
    assert [len(g.scores["total"]) for g in after.groups] == [2] * 8
    assert [i.total for i in after.replies([1], 99)] == [i.total for i in before.replies([1], 99)]


def test_neither_ray_nor_vllm_is_needed(root):
    names = "ray", "vllm", "deepspeed"
    command = f"import sys, duet.diagnose; assert not set({names}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], cwd=root, check=True)
