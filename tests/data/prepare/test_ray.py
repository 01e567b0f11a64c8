"""`duet prepare` as a user calls it: real Ray Data, the embedded world's codec and family, and a run's inputs of it."""

import pytest

from configs.load import load_config
from configs.validate import batch_summary
from controller.checkpointing import changed_settings
from controller.inputs import build_samplers, read_inputs
from tests.commands import duet
from tests.conftest import ROOT
from tests.data.prepare.talks import Talks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_recordings_become_the_inputs_of_a_run(world, tmp_path):
    talks = Talks(world, tmp_path / "src", 6)
    worse = {"rejected_text": talks.shown[4].text, "rejected_audio": "audio/answer4.wav"}
    rows = [talks.row(n, **(worse if n == 3 else {})) for n in range(6)]
    source = talks.write("talks.jsonl", [*rows, talks.row(0, audios=["audio/none.wav"])])
    arguments = (
        "prepare", str(source), "--config", "configs/playground.yaml", "--to", str(tmp_path / "to"), "--rows", "2",
        "--workers", "2", "--worker-cpus", "0.5", "--most-refused", "0.2",
    )  # fmt: skip
    done = duet(ROOT, *arguments)
    assert done.returncode == 0, done.stderr
    assert "7 rows: 6 prompts, 6 demonstrations, 1 pairs; refused: recording missing 1" in done.stdout
    assert "prepared before" in duet(ROOT, *arguments).stdout
    config = load_config(tmp_path / "to/config.yaml", ["rollout.batch_size=4", "train.num_steps=1"])
    changed = {
        key for key in changed_settings(load_config(ROOT / "configs/playground.yaml", []), config) if "data" in key
    }
    assert changed == {"data.prompts", "data.sft"}
    inputs = read_inputs(config)
    assert [prompt.token_ids.tolist() for prompt in inputs.prompts] == [
        talks.layout.prompt(talks.codes(f"audio/question{n}.wav")) for n in range(6)
    ]
    assert len({inputs.prompts[row].id for row in build_samplers(config, inputs)[0].take(6)}) == 6
    assert batch_summary(config)
