"""The command line: `duet …`, the same as `python -m duet …`.

Each command lives in a module of this package. The module is imported when its command runs, so `duet --help` and
`duet train` do not pay for the imports of the other commands.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup

from common.errors import InputError

TRAIN, PREPARE, RESULTS = "Train", "Prepare", "Look at results"


@dataclass(frozen=True, kw_only=True)
class CommandEntry:
    """A command in the list of `duet --help`."""

    module: str
    """The module whose `app` holds the command."""
    panel: str
    summary: str


COMMANDS = {
    "train": CommandEntry(module="duet.train", panel=TRAIN, summary="Train a model, or resume a run."),
    "set-lambda": CommandEntry(module="duet.control", panel=TRAIN, summary="Set λ in a running job."),
    "scale": CommandEntry(module="duet.control", panel=TRAIN, summary="Resize the actor pools of a running job."),
    "doctor": CommandEntry(
        module="duet.doctor", panel=PREPARE, summary="Check a configuration before anything starts."
    ),
    "size": CommandEntry(
        module="duet.size", panel=PREPARE, summary="Compute how many actors of each role a job needs."
    ),
    "import": CommandEntry(
        module="duet.convert", panel=PREPARE, summary="Extract the trainable language model of a released checkpoint."
    ),
    "prepare": CommandEntry(
        module="duet.prepare", panel=PREPARE, summary="Encode dialogues and sound files as training data."
    ),
    "pairs": CommandEntry(module="duet.pairs", panel=PREPARE, summary="Build preference pairs from scored replies."),
    "playground": CommandEntry(
        module="duet.playground", panel=PREPARE, summary="Build the embedded example world from source."
    ),
    "report": CommandEntry(
        module="duet.report", panel=RESULTS, summary="Write or serve an HTML page with a run's plots and recordings."
    ),
    "evaluate": CommandEntry(
        module="duet.evaluate", panel=RESULTS, summary="Run a benchmark of spoken questions and score the replies."
    ),
    "diagnose": CommandEntry(
        module="duet.diagnose", panel=RESULTS, summary="Measure gradients, Δlogp, score variance and λ of a run."
    ),
    "judge": CommandEntry(module="duet.judge", panel=RESULTS, summary="Compare judges with human ratings."),
    "ablate": CommandEntry(
        module="duet.ablate", panel=RESULTS, summary="Train the paper's arms and compare them on one page."
    ),
    "export": CommandEntry(module="duet.convert", panel=RESULTS, summary="Write a trained model as a checkpoint."),
}
"""The commands, in the order of `duet --help`."""


class LazyGroup(TyperGroup):
    """Lists every command from `COMMANDS`, and imports only the command that runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        return TyperCommand(cmd_name, help=entry.summary, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # typer suggests among these
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name else None, rest


def load_command(name: str) -> Any:
    """Import a command and return it."""
    command = typer.main.get_group(importlib.import_module(COMMANDS[name].module).app).commands[name]
    for part in (command, *getattr(command, "commands", {}).values()):
        part.help = _unwrap(part.help or "")
    return command


def _unwrap(text: str) -> str:
    """Join the lines of each paragraph, so that the terminal wraps it. Indented paragraphs stay as they are."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else part.replace("\n", " ") for part in paragraphs)


app = typer.Typer(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def describe() -> None:
    """Post-train spoken dialogue models by reinforcement learning."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done. 1: the run failed, timed out, or a check found an error. 2: the input cannot be used; one sentence on
    stderr says why. 130: interrupted.
    """
    try:
        execute(sys.argv[1:] if arguments is None else arguments)
    except typer.Exit as ended:
        return ended.exit_code
    except InputError as error:
        print(f"duet: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ not in ("RunFailed", "ControllerDied"):  # importing the classes would import Ray
            raise
        print(f"duet: the run failed: {error}", file=sys.stderr)
        return 1
    except TimeoutError as error:
        print(f"duet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("duet: interrupted", file=sys.stderr)
        return 130
    return 0


def execute(arguments: Sequence[str]) -> Any:
    """Run a command in this process and return what its function returns. Raises InputError for bad arguments too."""
    command = typer.main.get_command(app)
    if "_DUET_COMPLETE" in os.environ:
        command.main(prog_name="duet")  # prints completions for the shell and exits
    try:
        with command.make_context("duet", list(arguments)) as context:
            return command.invoke(context)
    except typer.TyperException as error:
        path = getattr(getattr(error, "ctx", None), "command_path", "duet")
        raise InputError(f"{_format_usage_error(error).rstrip('.?')}; see `{path} --help`") from error


def _format_usage_error(error: typer.TyperException) -> str:
    """Return the message of a usage error, with the option's name and value first if typer rejected a value."""
    cause, parameter = error.__cause__, getattr(error, "param", None)
    if parameter is None or not isinstance(cause, ValidationError):
        return error.format_message()
    name, [detail, *_] = parameter.opts[-1], cause.errors()
    if detail["type"] == "value_error":
        return f"{name}: {detail['ctx']['error']}"
    return f"{name}: {detail['input']!r} is not allowed; {detail['msg'][0].lower()}{detail['msg'][1:]}"


if __name__ == "__main__":
    sys.exit(main())
