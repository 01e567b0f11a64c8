"""`duet doctor`: what would go wrong with a configuration, before anything starts."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from common.secrets import redact
from deploy.preflight.finding import Finding, Severity, count_by_severity
from duet.options import Configs, Overrides, merge_configs

app = typer.Typer()

STYLES = {Severity.FINE: "green", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
SEVERITY_WIDTH, CHECK_WIDTH = 9, 16
"""Characters of the first two columns."""


@app.command()
def doctor(
    *,
    overrides: Overrides,
    config: Configs,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object, for programs")] = False,
) -> None:
    """Check a configuration before anything starts.

        duet doctor                                      (the playground, as `duet train` runs it)
        duet doctor --config my.yaml train.num_steps=200

    Checks in this order: the configuration and its batch arithmetic; installed versions; cores, GPUs and memory by
    role; the checkpoint's vocabulary and weights; every row of the data; the codec, by a round trip of one
    demonstration; each rater, by scoring one example, HTTP judges included; ports, hosts, disk and shared memory.
    At last it reads what a run reads at its start. It writes nothing.

    Each line is fine, a warning, or an error that would end a run. Warnings and errors say what to do. The exit code
    is 1 if there is an error.

    With RAY_ADDRESS or cluster.address it checks the cluster's nodes instead of this machine.
    """
    from deploy.preflight.checks import examine  # imports torch and Ray

    files, found = merge_configs(config), list[Finding]()
    name = ", ".join(str(file) for file in files) if isinstance(files, list) else str(files)
    console = Console(highlight=False)
    if not as_json:
        console.print(f"duet doctor  {name}", soft_wrap=True)
    for finding in examine(files, overrides):
        found.append(finding)
        if not as_json:
            console.print(format_finding(finding, console.width if console.is_terminal else None), soft_wrap=True)
    print(to_json(name, found) if as_json else conclusion(found))
    if count_by_severity(found)[Severity.ERROR]:
        raise typer.Exit(1)


def format_finding(finding: Finding, width: int | None) -> Text:
    """Format a finding as one line, with its remedy below. `width`: columns to wrap at; None does not wrap."""
    indent = " " * (2 + SEVERITY_WIDTH + CHECK_WIDTH)
    text = Text(f"  {finding.state:<{SEVERITY_WIDTH}}", STYLES[finding.state])
    text.append(f"{finding.check:<{CHECK_WIDTH}}{_wrap(redact(finding.text), indent, width)}", "default")
    if finding.remedy:
        text.append(f"\n{indent}→ {_wrap(redact(finding.remedy), indent + '  ', width)}", "default")
    return text


def conclusion(found: Iterable[Finding]) -> str:
    """Return the last line: the counts, and whether a run can start."""
    counts = count_by_severity(found)
    listed = ", ".join(f"{counts[s]} {s}{'s' if s is not Severity.FINE and counts[s] != 1 else ''}" for s in Severity)
    return f"{listed}: " + ("a run would fail" if counts[Severity.ERROR] else "ready to run")


def to_json(config: str, found: Iterable[Finding]) -> str:
    """Format all findings as one JSON object."""
    found = list(found)
    rows = [{name: redact(value) for name, value in asdict(finding).items()} for finding in found]
    return json.dumps(
        {"config": config, "counts": count_by_severity(found), "findings": rows}, ensure_ascii=False, indent=2
    )


def _wrap(text: str, indent: str, width: int | None) -> str:
    if width is None or width < len(indent) + 30:
        return text
    return textwrap.fill(text, width - len(indent), break_on_hyphens=False).replace("\n", f"\n{indent}")
