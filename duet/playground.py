"""`duet playground`: the embedded example world, from source."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def playground(
    out: Annotated[Path, typer.Option(metavar="DIR", help="where to write the world")] = Path("playground/world"),
    seed: Annotated[int, typer.Option(help="seed of the data and of the model's initial weights")] = 0,
) -> None:
    """Build the embedded example world from source."""
    from playground.build import build_world

    build_world(out, seed)
