"""`duet import`: the language model of a released checkpoint, as transformers and vLLM read it.

duet import RELEASED --family vita-audio-boost --to DIR
"""

import argparse
from pathlib import Path

from common.errors import InputError
from duet.export import check_new
from speech.families import family


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("released", type=Path, metavar="RELEASED", help="directory of the released checkpoint")
    command.add_argument("--family", required=True, help="a model family, or module:NAME of one of your own")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="written anew")


def run(options: argparse.Namespace) -> None:
    from speech.checkpoint_conversion import import_checkpoint
    from speech.modeling import model_class

    chosen = family(options.family)
    if chosen.original is None:
        raise InputError(f"family {chosen.name} has no released layout of its own: use its checkpoints as they are")
    check_new(options.to)
    model_class(chosen)
    others = import_checkpoint(options.released, chosen.original, chosen.name, options.to)
    print(f"{options.to} holds the language model of {options.released}; {others} tensors of other parts stay there")
    print(f"use it: model.path={options.to} model.family={chosen.name}")
