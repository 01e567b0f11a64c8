"""`duet train`: the main job."""

from pathlib import Path
from typing import Annotated

import typer

from duet.options import Configs, Overrides, merge_configs

app = typer.Typer()


@app.command()
def train(
    *,
    overrides: Overrides,
    config: Configs,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="continue this run from its newest checkpoint")
    ] = None,
) -> Path:
    """Train a model, or resume a run.

    duet train train.num_steps=3 run.name=first run.seed=7
    duet train --config my.yaml
    duet train --resume runs/first
    """
    from configs.load import load_config

    if resume is None:
        loaded = load_config(merge_configs(config), overrides)  # reports bad input before torch and Ray are imported
        from controller import launcher

        return launcher.train(loaded)
    from controller import launcher
    from controller.checkpointing import plan_resume

    return launcher.resume_training(plan_resume(resume, overrides, config))
