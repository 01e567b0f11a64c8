"""`duet doctor`: what would go wrong with a configuration, before anything is started.

    duet doctor                                     the playground, as `duet train` would run it
    duet doctor --config my.yaml train.num_steps=200

Looks at the configuration and its batch arithmetic, at what is installed, cores, GPUs and memory by role, at the
checkpoint's vocabulary and weights, at every row of the data, at the codec (a demonstration to sound and back), at each
rater (one scored example, judges behind HTTP included), at ports, hosts, disk and shared memory; in the end it reads
what a run would read. Every line is fine, a warning with what to do, or an error, which would end a run. Nothing is
written. The exit code is 1 when there is an error. With RAY_ADDRESS or cluster.address the cluster's nodes are looked
at in place of this machine.
"""

import argparse
import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from common.secrets import redact
from deploy.preflight.finding import Finding, Severity, pluralise

DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "playground.yaml"
STYLES = {Severity.FINE: "green", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}
"""The word says it; the colour helps to find it."""
STATE, CHECK = 9, 16
"""Characters of the first two columns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duet doctor`."""
    parser.add_argument(
        "--config",
        type=Path,
        action="append",
        help="YAML file; given several times, each changes those before it (default: the playground's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for `duet train`")


def run(options: argparse.Namespace) -> None:
    """Prints what is found, as it is found. Ends with exit code 1 when there is an error."""
    from deploy.preflight.checks import examine  # torch and Ray, once the arguments are known to be good

    paths, found = options.config or [DEFAULT_CONFIG], list[Finding]()
    name = " + ".join(map(str, paths))
    console = Console(highlight=False)
    if not options.json:
        console.print(f"duet doctor  {name}", soft_wrap=True)
    for finding in examine(paths, options.overrides):
        found.append(finding)
        if not options.json:
            console.print(shown(finding, console.width if console.is_terminal else None), soft_wrap=True)
    print(as_json(name, found) if options.json else conclusion(found))
    if pluralise(found)[Severity.ERROR]:
        raise SystemExit(1)


def shown(finding: Finding, width: int | None) -> Text:
    """A finding as a line, its remedy below it. width: of the terminal; None leaves lines as long as they are."""
    indent = " " * (2 + STATE + CHECK)
    text = Text(f"  {finding.state:<{STATE}}", STYLES[finding.state])
    text.append(f"{finding.check:<{CHECK}}{_wrapped(redact(finding.text), indent, width)}", "default")
    if finding.remedy:
        text.append(f"\n{indent}→ {_wrapped(redact(finding.remedy), indent + '  ', width)}", "default")
    return text


def conclusion(found: Iterable[Finding]) -> str:
    """The last line."""
    counts = pluralise(found)
    said = ", ".join(f"{counts[s]} {s}{'s' if s is not Severity.FINE and counts[s] != 1 else ''}" for s in Severity)
    return f"{said}: " + (
        "a run would not come to its end" if counts[Severity.ERROR] else "nothing stands against a run"
    )


def as_json(config: str, found: Iterable[Finding]) -> str:
    """All findings, for programs."""
    found = list(found)
    rows = [{name: redact(value) for name, value in asdict(finding).items()} for finding in found]
    return json.dumps({"config": config, "counts": pluralise(found), "findings": rows}, ensure_ascii=False, indent=2)


def _wrapped(text: str, indent: str, width: int | None) -> str:
    if width is None or width < len(indent) + 30:
        return text
    return textwrap.fill(text, width - len(indent), break_on_hyphens=False).replace("\n", f"\n{indent}")
