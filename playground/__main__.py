"""`python -m playground`: builds the embedded world from nothing."""

import argparse
from pathlib import Path

from playground.build import build_world


def main() -> None:
    """Parses the arguments and builds."""
    parser = argparse.ArgumentParser(prog="python -m playground", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "world", help="folder to write (replaced)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    arguments = parser.parse_args()
    build_world(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
