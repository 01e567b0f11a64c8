"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "playground.yaml"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run, or its name under runs/")]
Overrides = Annotated[
    list[str],
    typer.Argument(
        metavar="key=value",
        default_factory=list,
        show_default=False,
        help="configuration keys to override, for example run.seed=7",
    ),
]
Configs = Annotated[
    list[Path],
    typer.Option(
        "--config",
        metavar="FILE",
        default_factory=list,
        show_default="configs/playground.yaml",
        help="YAML file; give it several times to change earlier files by later ones",
    ),
]


def merge_configs(files: list[Path]) -> Path | list[Path]:
    """Return the file, or the list of files, for `configs.load.load_config`; the playground's without any."""
    if not files:
        return DEFAULT_CONFIG
    return files[0] if len(files) == 1 else files
