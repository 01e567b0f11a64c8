"""`duet import` and `duet export`: checkpoints from and to the layouts in which models are released."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import InputError
from duet.options import Run

if TYPE_CHECKING:
    from controller.checkpointing import Checkpoint
    from speech.families import Family

app = typer.Typer()

To = Annotated[Path, typer.Option("--to", metavar="DIR", help="new directory for the checkpoint", show_default=False)]


@app.command("import")
def import_model(
    released: Annotated[Path, typer.Argument(metavar="RELEASED", help="directory of the released checkpoint")],
    *,
    name: Annotated[str, typer.Option("--family", metavar="FAMILY", help="model family, or module:NAME of your own")],
    to: To,
) -> None:
    """Extract the trainable language model of a released checkpoint.

    The result is a checkpoint that transformers and vLLM read. Other parts stay in the released checkpoint.

        duet import VITA-Audio-Boost --family vita-audio-boost --to models/vita-audio-boost
    """
    from speech.checkpoint_conversion import import_checkpoint
    from speech.families import family
    from speech.modeling import model_class

    chosen = family(name)
    if chosen.original is None:
        raise InputError(f"--family: {chosen.name} needs no import; use its released checkpoint as model.path")
    check_new(to)
    model_class(chosen)
    others = import_checkpoint(released, chosen.original, chosen.name, to)
    print(f"{to} holds the language model of {released}; {others} tensors of other parts stay there")
    print(f"use it: model.path={to} model.family={chosen.name}")


@app.command("export")
def export_model(
    run: Run,
    *,
    to: To,
    iteration: Annotated[
        int | None, typer.Option(metavar="N", help="iteration of the checkpoint", show_default="newest")
    ] = None,
    released: Annotated[
        bool, typer.Option("--released", help="write the layout in which the imported model was released")
    ] = False,
) -> None:
    """Write a trained model as a checkpoint.

    duet export runs/first --to trained               (for transformers and vLLM)
    duet export runs/first --to trained --released    (for a model that `duet import` read)
    """
    from configs.load import load_config
    from controller.checkpointing import STATE
    from learner.checkpoint import MANIFEST, read_manifest
    from observability.run_directory import run_directory
    from speech.families import family

    directory = run_directory(run)
    config = load_config(directory / "config.yaml", [])
    checkpoint = _find_checkpoint(directory, iteration)
    read_manifest(checkpoint.directory)
    check_new(to)
    if released:
        _export_released(Path(config.model.path), family(config.model.family), checkpoint.directory, to)
    else:
        to.mkdir(parents=True)
        adapter = checkpoint.directory / "adapter"  # the LoRA weights in PEFT's format, beside the merged model
        for file in sorted(checkpoint.directory.iterdir()):
            if file == adapter:
                shutil.copytree(file, to / file.name)
            elif file.is_file() and file.name not in (MANIFEST, STATE) and not file.name.startswith("."):
                shutil.copy(file, to / file.name)
    print(f"{to} holds the model of iteration {checkpoint.iteration}")


def _export_released(start: Path, chosen: "Family", trained: Path, directory: Path) -> None:
    from speech.checkpoint_conversion import export_checkpoint, read_origin

    origin = read_origin(start)
    if origin is None or chosen.original is None:
        raise InputError(f"--released: {start} was not imported by `duet import`; export without --released")
    if not Path(origin.released).is_dir():
        raise InputError(
            f"--released: {start} was imported from {origin.released}, which does not exist any more; restore it, or "
            "export without --released"
        )
    export_checkpoint(trained, Path(origin.released), chosen.original, directory)


def _find_checkpoint(run: Path, iteration: int | None) -> "Checkpoint":
    from controller.checkpointing import CheckpointManager

    found = list(CheckpointManager(run).whole())
    chosen = [checkpoint for checkpoint in found if iteration in (None, checkpoint.iteration)]
    if not chosen:
        listed = ", ".join(str(checkpoint.iteration) for checkpoint in found) or "none"
        raise InputError(f"--iteration: {run} has no such checkpoint; iterations with a checkpoint: {listed}")
    return chosen[0]


def check_new(directory: Path) -> None:
    """Raise InputError unless the directory is missing or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"--to: {directory} exists and is not empty; name a new directory")
