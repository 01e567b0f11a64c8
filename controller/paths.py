"""Paths of a configuration. Importable without torch."""

from pathlib import Path

from controller.config import Config


def make_absolute(config: Config) -> None:
    """Makes every path of a configuration absolute: actors do not share the driver's working directory."""
    config.run.directory = str(Path(config.run.directory).absolute())
    config.model.checkpoint = str(Path(config.model.checkpoint).absolute())
    config.data.prompts = str(Path(config.data.prompts).absolute())
    config.data.demonstrations = str(Path(config.data.demonstrations).absolute())
    config.data.held_out = {name: str(Path(path).absolute()) for name, path in config.data.held_out.items()}
    if config.preference.pairs.file:
        config.preference.pairs.file = str(Path(config.preference.pairs.file).absolute())
    config.reward.codec.arguments["path"] = str(Path(config.reward.codec.arguments["path"]).absolute())
