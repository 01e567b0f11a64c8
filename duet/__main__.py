"""The command line: `duet …`, the same as `python -m duet …`."""

import argparse
import importlib
import sys
from pathlib import Path

from common.errors import InputError

MODULES = {
    "compare": ("duet.compare", "the paper's arms side by side"),
    "doctor": ("duet.doctor", "what would go wrong, before anything is started"),
    "evaluate": ("duet.evaluate", "a suite of spoken questions, per task, with IQ and EQ"),
    "diagnose": ("duet.diagnose", "gradient geometry, Δlogp, scores and λ of a run"),
    "import": ("duet.import_checkpoint", "a released checkpoint's language model, to train it"),
    "export": ("duet.export", "what a run trained, as a checkpoint"),
    "judge": ("duet.judge", "judges against human ratings"),
    "plan": ("duet.plan", "how many members of each role a job needs"),
    "prepare": ("duet.prepare", "your own dialogues as data for a run"),
    "pairs": ("duet.pairs", "preference pairs from scored replies"),
    "report": ("duet.report", "the page to see and hear a run"),
}
"""Commands that are modules of their own, with `add_arguments` and `run`."""
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "playground.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit code 0: done; 2: the input cannot be used, said in one sentence; 1: anything else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        options.act(options)
    except InputError as error:
        print(f"duet: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ not in ("RunFailed", "ControllerDied"):
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


def _parser(wanted: str) -> argparse.ArgumentParser:
    """Every command, and as `act` what it does. Modules of commands are imported for the wanted one only."""
    parser = argparse.ArgumentParser(prog="duet", description="Reinforcement learning for spoken dialogue models.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="the main job")
    train.add_argument("--config", type=Path, help=f"YAML file (default: {DEFAULT_CONFIG})")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run where it stopped")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for example run.iterations=3 run.seed=7")
    train.set_defaults(act=_train)

    mix = commands.add_parser("mix", help="set λ in a running job")
    mix.add_argument("run", type=Path, metavar="RUN", help="directory of a run, or its name under runs/")
    mix.add_argument(
        "value",
        metavar="fixed=NUMBER|adaptive|fixed|two_stage",
        help="taken at the run's next iteration, and recorded",
    )
    mix.add_argument("--wait", type=float, default=120.0, metavar="SECONDS", help="deadline (default: %(default)s)")
    mix.set_defaults(act=_mix)

    scale = commands.add_parser("scale", help="change the size of a running job's pools")
    scale.add_argument("run", type=Path, metavar="RUN", help="directory of a run, or its name under runs/")
    scale.add_argument("sizes", nargs="+", metavar="POOL=MEMBERS", help="rollout=4 reward=2")
    scale.add_argument("--wait", type=float, default=120.0, metavar="SECONDS", help="deadline (default: %(default)s)")
    scale.set_defaults(act=_scale)

    for name, (where, what) in MODULES.items():
        command = commands.add_parser(name, help=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == wanted:
            module = importlib.import_module(where)
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(act=module.run)

    build = commands.add_parser("playground", help="build the embedded world from nothing")
    build.add_argument("--out", type=Path, default=Path("playground/world"))
    build.add_argument("--seed", type=int, default=0)
    build.set_defaults(act=_build)
    return parser


def _train(options: argparse.Namespace) -> None:
    from configs.load import load_config
    from controller.launcher import resume_training, train
    from controller.resuming import plan_resume

    if options.resume is not None:
        resume_training(plan_resume(options.resume, options.overrides, options.config))
    else:
        train(load_config(options.config or DEFAULT_CONFIG, options.overrides))


def _mix(options: argparse.Namespace) -> None:
    from controller.requests import parse_mix_value, send_request
    from observability.run_directory import run_directory

    value = parse_mix_value(options.value)
    taken = send_request(run_directory(options.run), "mix", value, timeout_s=options.wait, print_line=print)
    print(f"taken: λ is {options.value} from iteration {taken} on")


def _scale(options: argparse.Namespace) -> None:
    from controller.requests import parse_pool_sizes, send_request
    from observability.run_directory import run_directory

    sizes = parse_pool_sizes(options.sizes)
    taken = send_request(run_directory(options.run), "scale", sizes, timeout_s=options.wait, print_line=print)
    asked = ", ".join(f"{pool} {members}" for pool, members in sizes.items())
    print(f"taken at iteration {taken}: {asked}; members join when they are up, and leave when their work is done")


def _build(options: argparse.Namespace) -> None:
    from playground.build import build_world

    build_world(options.out, options.seed)


if __name__ == "__main__":
    sys.exit(main())
