"""`duet export`: what a run trained, as a checkpoint.

duet export RUN --to DIR                as transformers and vLLM read it
duet export RUN --to DIR --released     as it was released, for a model that `duet import` took in
"""

import argparse
import shutil
from pathlib import Path

from common.errors import InputError
from configs.load import load_config
from controller.checkpointing import STATE, Checkpoint, CheckpointManager
from learner.checkpoint import MANIFEST, read_manifest
from observability.run_directory import run_directory
from speech.families import Family, family


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", type=Path, metavar="RUN", help="directory of a run, or its name under runs/")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="written anew")
    command.add_argument("--iteration", type=int, help="of the checkpoint (default: the newest)")
    command.add_argument("--released", action="store_true", help="in the layout that the model was released in")


def run(options: argparse.Namespace) -> None:
    directory = run_directory(options.run)
    config = load_config(directory / "config.yaml", [])
    checkpoint = _checkpoint(directory, options.iteration)
    read_manifest(checkpoint.directory)
    check_new(options.to)
    if options.released:
        _export_released(Path(config.model.checkpoint), family(config.model.family), checkpoint.directory, options.to)
    else:
        options.to.mkdir(parents=True)
        adapter = checkpoint.directory / "adapter"  # as PEFT has it, beside the model that it makes
        for file in sorted(checkpoint.directory.iterdir()):
            if file == adapter:
                shutil.copytree(file, options.to / file.name)
            elif file.is_file() and file.name not in (MANIFEST, STATE) and not file.name.startswith("."):
                shutil.copy(file, options.to / file.name)
    print(f"{options.to} holds the model of iteration {checkpoint.iteration}")


def _export_released(start: Path, chosen: Family, trained: Path, directory: Path) -> None:
    from speech.checkpoint_conversion import export_checkpoint, read_origin

    origin = read_origin(start)
    if origin is None or chosen.original is None:
        raise InputError(f"--released: {start} was not imported (duet import); export it without")
    if not Path(origin.released).is_dir():
        raise InputError(f"--released: {origin.released}, which {start} was imported from, is not there any more")
    export_checkpoint(trained, Path(origin.released), chosen.original, directory)


def _checkpoint(run: Path, iteration: int | None) -> Checkpoint:
    found = list(CheckpointManager(run).complete())
    chosen = [one for one in found if iteration in (None, one.iteration)]
    if not chosen:
        there = ", ".join(str(one.iteration) for one in found) or "none"
        raise InputError(f"{run} has no such checkpoint; there are those of iterations: {there}")
    return chosen[0]


def check_new(directory: Path) -> None:
    """Raises InputError for a directory that something may be lost in."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"--to: {directory} is there already and not empty")
