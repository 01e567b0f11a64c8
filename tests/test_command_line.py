"""The command line itself: the list of commands, exit codes, and what is imported when."""

import os
import subprocess
import sys

import pytest
import typer

from common.errors import InputError
from controller.launcher import ControllerDied, RunFailed
from duet import control
from duet.__main__ import COMMANDS, execute, load_command, main
from duet.options import DEFAULT_CONFIG, merge_configs


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_what_the_command_says(name):
    command = load_command(name)
    assert command.name == name
    assert command.help.splitlines()[0] == COMMANDS[name].summary


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    command = load_command(name)
    for part in (command, *getattr(command, "commands", {}).values()):
        assert all(parameter.help for parameter in part.params), part.name


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"torch", "ray", "vllm", "deepspeed", "pyarrow", "omegaconf", "matplotlib"}),
        (["train", "--help"], {"torch", "ray", "vllm", "deepspeed", "pyarrow", "omegaconf", "matplotlib"}),
        (["train", "train.num_steps=0"], {"torch", "ray", "vllm", "deepspeed", "matplotlib"}),
        (["set-lambda", "nowhere", "adaptive"], {"torch", "ray", "vllm", "deepspeed", "matplotlib"}),
    ],
    ids=" ".join,
)
def test_a_command_does_not_import_what_it_does_not_need(root, arguments, heavy):
    script = f"import sys; from duet.__main__ import main; main({arguments!r}); print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing command; see `duet --help`"),
        (["trian"], "No such command 'trian'. Did you mean 'train'; see `duet --help`"),
        (["train", "--resum", "x"], "No such option: --resum (Possible options: --resume); see `duet train --help`"),
        (["export", "runs/first"], "Missing option '--to'; see `duet export --help`"),
        (
            ["set-lambda", "x", "adaptive", "--wait", "-1"],
            "--wait: '-1' is not allowed; input should be greater",
        ),
        (
            ["evaluate", "--data", "x", "--suite", "y"],
            "--suite: 'y' is not one of 'voicebench', 'openaudiobench'",
        ),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(capsys, arguments, complaint):
    with pytest.raises(InputError):
        execute(arguments)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("duet: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("run.name: too long"), 2, "duet: run.name: too long\n"),
        (RunFailed("a rank died"), 1, "duet: the run failed: a rank died\n"),
        (ControllerDied("no answer"), 1, "duet: the run failed: no answer\n"),
        (TimeoutError("not within 3 s"), 1, "duet: not within 3 s\n"),
        (KeyboardInterrupt(), 130, "duet: interrupted\n"),
        (typer.Exit(1), 1, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_have_exit_codes(monkeypatch, capsys, error, code, message):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("controller.requests.parse_pool_sizes", fail)
    assert main(["scale", "runs/first", "rollout=2"]) == code
    assert capsys.readouterr().err == message


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr("controller.requests.parse_pool_sizes", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["scale", "runs/first", "rollout=2"])


def test_options_and_overrides_may_be_mixed(tmp_path):
    parsed = load_command("train").make_context("train", ["run.seed=1", "--config", "a", "run.name=x", "--config", "b"])
    assert parsed.params["overrides"] == ["run.seed=1", "run.name=x"]
    assert [str(path) for path in parsed.params["config"]] == ["a", "b"]
    assert merge_configs(parsed.params["config"]) == parsed.params["config"]
    assert merge_configs(parsed.params["config"][:1]) == parsed.params["config"][0]
    assert merge_configs([]) == DEFAULT_CONFIG


def test_a_request_waits_two_minutes_unless_told_otherwise():
    parsed = load_command("set-lambda").make_context("set-lambda", ["runs/first", "fixed=0.3"]).params
    assert parsed["wait"] == 120.0
    assert {command.name for command in control.app.registered_commands} >= {"set-lambda"}


def test_the_shell_completes_commands(root):
    words = {"COMP_WORDS": "duet s", "COMP_CWORD": "1", "_DUET_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-m", "duet"], cwd=root, env=os.environ | words, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["set-lambda", "scale", "size"]
