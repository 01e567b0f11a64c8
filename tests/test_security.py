"""What a run trusts: checkpoints with code, pickled weights, where the ranks meet. See docs/security.md.

Sockets of all members and the token of a run: tests/test_running.py.
"""

import json
import shutil
from types import SimpleNamespace

import psutil
import pytest
import ray

from common.errors import InputError
from configs.load import load_config
from controller import build
from controller.inputs import read_inputs
from evaluation.diagnosis.models import load
from learner import setup
from learner.engine import LearnerEngine
from learner.rank import LearnerRank
from speech.families import PLAYGROUND
from speech.grammar import token_kinds
from speech.vocabulary import Vocabulary
from tests.conftest import ROOMS


def test_nothing_of_ours_switches_the_token_off(root):
    rooms = (*ROOMS, "scripts")
    files = [
        p for room in rooms for p in (root / room).rglob("*") if p.suffix in (".py", ".sh", ".yaml", ".yml", ".md")
    ]
    said = {
        (path.relative_to(root).as_posix(), line.strip())
        for path in files
        for line in path.read_text("utf-8").splitlines()
        if "RAY_AUTH_MODE" in line and "token" not in line
    }
    assert said == {("cluster/ray_cluster.py", 'os.environ.pop("RAY_AUTH_MODE", None)')}


@pytest.fixture
def trap(world, tmp_path, monkeypatch):
    """A checkpoint whose own code leaves a file when it is run."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    checkpoint, sprung = tmp_path / "trap", tmp_path / "sprung"
    shutil.copytree(world / "base", checkpoint)
    described = json.loads((checkpoint / "config.json").read_text())
    described["auto_map"] = {"AutoConfig": "spring.Config", "AutoModelForCausalLM": "spring.Model"}
    described["model_type"] = "spring"
    (checkpoint / "config.json").write_text(json.dumps(described))
    (checkpoint / "spring.py").write_text(
        "from pathlib import Path\n"
        "from transformers import Qwen2Config, Qwen2ForCausalLM\n"
        f"Path({str(sprung)!r}).touch()\n"
        "class Config(Qwen2Config):\n    model_type = 'spring'\n"
        "class Model(Qwen2ForCausalLM):\n    config_class = Config\n"
    )
    return SimpleNamespace(checkpoint=checkpoint, sprung=sprung)


def test_code_of_a_checkpoint_is_not_run(root, trap):
    config = load_config(root / "configs/playground.yaml", [f"model.path={trap.checkpoint}"])
    assert config.model.trust_remote_code is False
    kinds = token_kinds(Vocabulary.from_checkpoint(trap.checkpoint, PLAYGROUND.tokens))
    with pytest.raises(InputError, match=r"spring\.Config.*model\.trust_remote_code=true"):
        read_inputs(config)
    with pytest.raises(InputError, match=r"spring\.Config.*model\.trust_remote_code=true"):
        load(trap.checkpoint, PLAYGROUND, "float32", kinds)
    assert not trap.sprung.exists()
    assert load(trap.checkpoint, PLAYGROUND, "float32", kinds, trust_remote_code=True)
    assert trap.sprung.exists()  # the trap does work


def test_learner_and_engine_are_told_what_the_configuration_says(root, world, monkeypatch):
    for name in ("RolloutPool", "LearnerGroup"):
        monkeypatch.setattr(build, name, lambda *given: given)
    for said in (False, True):
        overrides = [f"model.path={world / 'base'}", *(["model.trust_remote_code=true"] if said else [])]
        config = load_config(root / "configs/playground.yaml", overrides)
        _, engine, *_ = build.rollout_pool(config, PLAYGROUND, lambda kind, **fields: None)
        _, rank, *_ = build.learner_group(config, PLAYGROUND, "x", None)
        assert engine.trust_remote_code is rank.trust_remote_code is said


def test_pickled_weights_are_refused(root, world, tmp_path):
    shutil.copytree(world / "base", tmp_path / "old")
    (tmp_path / "old/model.safetensors").rename(tmp_path / "old/pytorch_model.bin")
    config = load_config(root / "configs/playground.yaml", [f"model.path={tmp_path / 'old'}"])
    with pytest.raises(InputError, match=r"only pytorch_model\.bin, which could run code when it is read"):
        read_inputs(config)


def test_the_ranks_meet_where_only_they_are(monkeypatch):
    """torch's own store listens on every address of the machine; ours on the one that the group was told."""
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    rank = LearnerRank.__new__(LearnerRank)
    rank._engine = LearnerEngine.__new__(LearnerEngine)
    host, port = rank.address()
    store = setup.create_store(0, 1, host, port, rank._engine._listener)
    at = {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.laddr.port == port and not c.raddr}
    assert at == {"127.0.0.1"}
    store.set("greeting", "here")
    assert store.get("greeting") == b"here"
