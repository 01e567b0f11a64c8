"""The command line: `duet …`, the same as `python -m controller …`."""

import argparse
import sys
from pathlib import Path

from speech.errors import InputError

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "playground.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Exit code 0: done; 2: the input cannot be used, said in one sentence; 1: anything else."""
    parser = argparse.ArgumentParser(prog="duet", description="Reinforcement learning for spoken dialogue models.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="the main job")
    train.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="YAML file (default: %(default)s)")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for example run.iterations=3 run.seed=7")

    build = commands.add_parser("playground", help="build the embedded world from nothing")
    build.add_argument("--out", type=Path, default=Path("playground/world"))
    build.add_argument("--seed", type=int, default=0)

    options = parser.parse_args(arguments)
    try:
        if options.command == "train":
            from controller.reading import read
            from controller.train import RunFailed
            from controller.train import train as run

            config = read(options.config, options.overrides)
            try:
                run(config)
            except RunFailed as error:
                print(f"duet: the run failed: {error}", file=sys.stderr)
                return 1
        else:
            from playground.build import build as build_world

            build_world(options.out, options.seed)
    except InputError as error:
        print(f"duet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("duet: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
