"""All sources of a call of `duet prepare`, and the configuration that comes of them."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from controller.config import Config
from controller.fitting import load_codec
from controller.inputs import longest_prompt
from controller.preparing.command import CONFIG, Given, joiner
from controller.preparing.preparation import REFUSED, Preparation
from controller.preparing.running import Pool, Recipe
from controller.reading import read
from reward.parts import load
from speech.errors import InputError
from speech.families import Family, family
from speech.manifest import Manifest
from speech.vocabulary import Vocabulary


def prepare_all(options: argparse.Namespace, given: Sequence[Given]) -> None:
    """Prepares each source, and writes the configuration. Raises InputError, TimeoutError."""
    config = _configured(options, given)
    chosen = family(config.model.family)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.checkpoint), chosen.tokens)
    codec = load_codec(config, vocabulary)
    workers = options.workers or max(1, os.cpu_count() or 1)
    join = joiner(config.cluster.address, workers, options.worker_cpus)
    done: list[tuple[Given, Manifest]] = []
    try:
        for one in given:
            recipe = Recipe(
                family=chosen,
                checkpoint=str(Path(config.model.checkpoint).absolute()),
                codec=config.reward.codec.use,
                codec_arguments=config.reward.codec.arguments
                | {"path": str(Path(config.reward.codec.arguments["path"]).absolute())},
                hearing=config.data.encoder,
                hearing_path=str(Path(config.data.encoder_path).absolute()),
                longest_prompt=longest_prompt(config),
                longest=config.model.max_length,
                root=options.audio_root.absolute() if options.audio_root and not one.converted else None,
                folder=(options.to / one.name).absolute(),
            )
            preparation = Preparation(
                source=one.path.absolute(),
                recipe=recipe,
                vocabulary=vocabulary,
                codec_version=codec.version,
                encoder_version=_encoder_version(config, chosen),
                pool=Pool(
                    workers=workers,
                    cpus=options.worker_cpus,
                    gpus=options.worker_gpus,
                    seconds=options.part_seconds,
                ),
                rows=options.rows,
                most_refused=options.most_refused,
                trust=options.trust_recordings,
            )
            done.append((one, preparation.run(join, print)))
    finally:
        import ray

        if ray.is_initialized():
            ray.shutdown()
    for one, manifest in done:
        print(f"{one.name:<24}{_described(manifest)}")
        if manifest.refused:
            print(f"{'':<24}why: {options.to / one.name / REFUSED}")
    path = options.to / CONFIG
    path.write_text(_config(options, done), encoding="utf-8")
    print(f"duet train --config {path}")


def _encoder_version(config: Config, chosen: Family) -> str:
    """Of the speech encoder; empty where there is none. Raises InputError for a family that needs one."""
    if chosen.hears == "features" and not config.data.encoder:
        raise InputError(f"data.encoder: family {chosen.name} hears features; name the encoder that makes them")
    if chosen.hears != "features" and config.data.encoder:
        raise InputError(f"data.encoder: {config.data.encoder}, but family {chosen.name} hears codes")
    if not config.data.encoder:
        return ""
    try:
        return str(load(config.data.encoder).load(Path(config.data.encoder_path)).version)
    except Exception as error:  # an encoder of the user's own may raise anything
        raise InputError(
            f"data.encoder: {config.data.encoder} is no encoder that loads {config.data.encoder_path!r}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _configured(options: argparse.Namespace, given: Sequence[Given]) -> Config:
    """The configuration as it will be: one of data that are only being made need not name any."""
    folder = options.to / given[0].name
    data = [f"data.{name}={folder / name}" for name in ("prompts", "demonstrations")]
    return read(options.config, [*options.overrides, *data])


def _described(manifest: Manifest) -> str:
    kept = ", ".join(f"{folder.rows:,} {name}" for name, folder in manifest.folders.items())
    why = ", ".join(f"{reason} {count:,}" for reason, count in manifest.refused.items())
    return f"{manifest.rows:,} rows: {kept}" + (f"; refused: {why}" if why else "")


def _config(options: argparse.Namespace, done: Sequence[tuple[Given, Manifest]]) -> str:
    """YAML that extends the one that was given."""
    data: dict[str, Any] = {}
    for name in ("prompts", "demonstrations"):
        found = [
            {"path": str((options.to / one.name / name).absolute()), "weight": one.weight}
            for one, manifest in done
            if name in manifest.folders
        ]
        if found:
            data[name] = found[0]["path"] if len(found) == 1 else found
    return OmegaConf.to_yaml(OmegaConf.create({"extends": str(options.config.absolute()), "data": data}))
