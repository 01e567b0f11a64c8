"""Paths of a configuration. Importable without torch."""

from pathlib import Path

from controller.config import Config
from controller.sources import changed


def make_absolute(config: Config) -> None:
    """Makes every path of a configuration absolute: actors do not share the driver's working directory."""
    config.run.directory = str(Path(config.run.directory).absolute())
    config.model.checkpoint = str(Path(config.model.checkpoint).absolute())
    config.data.prompts = changed(config.data.prompts, _absolute)
    config.data.demonstrations = changed(config.data.demonstrations, _absolute)
    config.data.held_out = {name: _absolute(path) for name, path in config.data.held_out.items()}
    if config.data.encoder_path:
        config.data.encoder_path = _absolute(config.data.encoder_path)
    if config.preference.pairs.file:
        config.preference.pairs.file = _absolute(config.preference.pairs.file)
    config.reward.codec.arguments["path"] = str(Path(config.reward.codec.arguments["path"]).absolute())


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
