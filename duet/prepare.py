"""`duet prepare`: dialogues in words and sound files become token ids, once, in files that a run reads by row.

    duet prepare talks.jsonl --config my.yaml --to data/talks
    duet prepare talks.jsonl=3 jokes.parquet=1 --config my.yaml --to data/mixed --workers 8
    duet prepare --from-hf /data/spoken-squad --column question_audio=audio --column sft_target_text=answer …

Each source is JSON lines or Parquet of the schema that docs/own-data.md shows, or a folder of such files. Recordings
are encoded by the codec of the configuration, and turns spelt by its model's family, by Ray Data on this machine or on
the cluster that is joined. What comes of a source lies in a folder of its name below --to: prompts/, demonstrations/
for rows with a target, pairs/ for rows with a worse reply as well, and refused.jsonl, which says of each row that
cannot be used why. The configuration with these data is written to config.yaml there, sources mixed by their weights:

    duet train --config data/mixed/config.yaml

Called again, it does what is new, and nothing where source, recordings, codec, tokenizer and lengths are as they were.

All sources of a call of `duet prepare`, and the configuration that comes of them.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from common.errors import InputError
from configs.load import load_config
from configs.schema import Config, longest_prompt
from controller.checkpoint_checks import load_codec
from data.manifest import Manifest
from data.prepare.ray_job import EncodingConfig, EncodingPool
from data.prepare.source import REFUSED, Preparation
from speech.families import Family, family
from speech.registry import load_object
from speech.vocabulary import Vocabulary

CONFIG = "config.yaml"

DATA_KEYS = {"prompts": "prompts", "sft": "demonstrations"}
"""Kinds of prepared rows by the key of section `data` that names them."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """A source as it was given."""

    path: Path
    weight: float
    name: str
    """Of its folder."""
    converted: bool = False
    """Whether its recordings were written beside it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `duet prepare`."""
    parser.add_argument("sources", nargs="*", metavar="SOURCE[=WEIGHT]", help=".jsonl, .parquet, or a folder of them")
    parser.add_argument("--from-hf", action="append", default=[], metavar="DIR[=WEIGHT]",
                        help="a source that Hugging Face datasets saved to disk")  # fmt: skip
    parser.add_argument("--column", action="append", default=[], metavar="FIELD=COLUMN",
                        help="with --from-hf: of a field; also of question_audio, facts.NAME")  # fmt: skip
    parser.add_argument("--split", help="with --from-hf: of a dataset that has several")
    parser.add_argument("--config", type=Path, action="append",
                        help="YAML file that names checkpoint, family and codec; given several times, each changes "
                        "those before it")  # fmt: skip
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="where the data are written")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", dest="overrides",
                        help="for example --set model.max_model_len=4096")  # fmt: skip
    parser.add_argument("--only-convert", action="store_true", help="with --from-hf: write dialogues, and stop")
    parser.add_argument("--audio-root", type=Path, metavar="DIR",
                        help="that names of recordings start from (default: the folder of their source)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=0, help="actors that encode (default: a core each)")
    parser.add_argument("--worker-cpus", type=float, default=1.0, help="Ray CPUs of each (default: %(default)s)")
    parser.add_argument("--worker-gpus", type=float, default=0.0, help="and GPUs (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=4096, help="rows of a file, at least (default: %(default)s)")
    parser.add_argument("--most-refused", type=float, default=0.01, metavar="SHARE",
                        help="of the rows of a source that may be of no use (default: %(default)s)")  # fmt: skip
    parser.add_argument("--part-seconds", type=float, default=3600.0, help="deadline for a file (default: %(default)s)")
    parser.add_argument("--trust-recordings", action="store_true",
                        help="do not look whether sound files have changed since")  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Prints what is done. Raises InputError, or TimeoutError when no part is finished in time."""
    _check(options)
    given = _given(options.sources, taken=set())
    for one in _given(options.from_hf, taken={source.name for source in given}):
        from data.prepare.from_huggingface import convert  # which needs `datasets`, as nothing else does

        folder = options.to / one.name / "dialogues"
        print(f"{one.path}: {convert(one.path, folder, options.column, options.split, options.audio_root)}")
        given.append(PrepareOptions(path=folder, weight=one.weight, name=one.name, converted=True))
    if options.only_convert:
        return
    pass  # Ray, once the arguments are known to be good

    prepare_all(options, given)


def _check(options: argparse.Namespace) -> None:
    """Raises InputError for arguments that cannot be meant."""
    if not options.sources and not options.from_hf:
        raise InputError("duet prepare needs a source: a .jsonl or .parquet file, a folder of them, or --from-hf DIR")
    if options.config is None and not options.only_convert:
        raise InputError("duet prepare needs --config, which names the checkpoint, its family and the codec")
    if (options.column or options.split or options.only_convert) and not options.from_hf:
        raise InputError("--column, --split and --only-convert are for --from-hf")
    if options.sources and options.only_convert:
        raise InputError(f"--only-convert: {options.sources[0]} needs no conversion; name sources of --from-hf alone")
    bounds: list[tuple[str, float, float, float]] = [
        ("--workers", options.workers, 0, 4096), ("--rows", options.rows, 1, 1_000_000),
        ("--most-refused", options.most_refused, 0.0, 1.0), ("--worker-cpus", options.worker_cpus, 0.01, 4096),
        ("--worker-gpus", options.worker_gpus, 0.0, 4096), ("--part-seconds", options.part_seconds, 1.0, 604_800),
    ]  # fmt: skip
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise InputError(f"{name}: {value} is outside [{low:g}, {high:g}]")


def _given(texts: list[str], taken: set[str]) -> list[PrepareOptions]:
    """Sources with their weights, each with a name of its own."""
    found: list[PrepareOptions] = []
    for text in texts:
        path, weight = _weighted(text)
        name = path.resolve().stem if path.suffix in (".jsonl", ".parquet") else path.resolve().name
        if name in taken or name in (CONFIG, ""):
            raise InputError(f"{path}: another source is called {name!r} as well; rename one, its folder is named so")
        taken.add(name)
        found.append(PrepareOptions(path=path, weight=weight, name=name))
    return found


def _weighted(text: str) -> tuple[Path, float]:
    before, equals, after = text.rpartition("=")
    try:
        weight = float(after)
    except ValueError:
        return Path(text), 1.0  # a name with "=" in it
    if not equals or not before:
        return Path(text), 1.0
    if not isfinite(weight) or weight <= 0:
        raise InputError(f"{text}: the weight {after} is not possible; a positive number")
    return Path(before), weight


def joiner(address: str, workers: int, cpus: float) -> Callable[[], None]:
    """Joins Ray, once: the cluster at an address or in RAY_ADDRESS, else one that is started here."""
    joined = False

    def join() -> None:
        nonlocal joined
        if joined:
            return
        joined = True
        found = address or os.environ.get("RAY_ADDRESS")
        if found:
            from cluster.ray_cluster import join as join_cluster

            join_cluster(found)
            return
        from cluster import ray_cluster

        ray_cluster.start(max(os.cpu_count() or 1, int(workers * cpus) + 2), {})

    return join


def prepare_all(options: argparse.Namespace, given: Sequence[PrepareOptions]) -> None:
    """Prepares each source, and writes the configuration. Raises InputError, TimeoutError."""
    config = _configured(options, given)
    chosen = family(config.model.family)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.path), chosen.tokens)
    codec = load_codec(config, vocabulary)
    workers = options.workers or max(1, os.cpu_count() or 1)
    join = joiner(config.cluster.address, workers, options.worker_cpus)
    done: list[tuple[PrepareOptions, Manifest]] = []
    try:
        for one in given:
            recipe = EncodingConfig(
                family=chosen,
                checkpoint=str(Path(config.model.path).absolute()),
                codec=config.reward.codec.target,
                codec_arguments=config.reward.codec.kwargs
                | {"path": str(Path(config.reward.codec.kwargs["path"]).absolute())},
                hearing=config.data.encoder,
                hearing_path=str(Path(config.data.encoder_path).absolute()),
                longest_prompt=longest_prompt(config),
                longest=config.model.max_model_len,
                root=options.audio_root.absolute() if options.audio_root and not one.converted else None,
                folder=(options.to / one.name).absolute(),
            )
            preparation = Preparation(
                source=one.path.absolute(),
                recipe=recipe,
                vocabulary=vocabulary,
                codec_version=codec.version,
                encoder_version=_encoder_version(config, chosen),
                pool=EncodingPool(
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
        return str(load_object(config.data.encoder).load(Path(config.data.encoder_path)).version)
    except Exception as error:  # an encoder of the user's own may raise anything
        raise InputError(
            f"data.encoder: {config.data.encoder} is no encoder that loads {config.data.encoder_path!r}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _configured(options: argparse.Namespace, given: Sequence[PrepareOptions]) -> Config:
    """The configuration as it will be: one of data that are only being made need not name any."""
    folder = options.to / given[0].name
    data = [f"data.{key}={folder / name}" for key, name in DATA_KEYS.items()]
    return load_config(options.config, [*options.overrides, *data])


def _described(manifest: Manifest) -> str:
    kept = ", ".join(f"{folder.rows:,} {name}" for name, folder in manifest.folders.items())
    why = ", ".join(f"{reason} {count:,}" for reason, count in manifest.refused.items())
    return f"{manifest.rows:,} rows: {kept}" + (f"; refused: {why}" if why else "")


def _config(options: argparse.Namespace, done: Sequence[tuple[PrepareOptions, Manifest]]) -> str:
    """YAML that extends the one that was given."""
    data: dict[str, Any] = {}
    for key, name in DATA_KEYS.items():
        found = [
            {"path": str((options.to / one.name / name).absolute()), "weight": one.weight}
            for one, manifest in done
            if name in manifest.folders
        ]
        if found:
            data[key] = found[0]["path"] if len(found) == 1 else found
    files = [str(path.absolute()) for path in options.config]
    return OmegaConf.to_yaml(OmegaConf.create({"extends": files if len(files) > 1 else files[0], "data": data}))
