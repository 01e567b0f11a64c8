"""`duet prepare`: dialogues in text and sound files, encoded once as token ids in files that a run reads by row."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
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

app = typer.Typer()

CONFIG = "config.yaml"

DATA_KEYS = {"prompts": "prompts", "sft": "demonstrations"}
"""Kinds of prepared rows by the key of section `data` that names them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source from the command line."""

    path: Path
    weight: float
    name: str
    """Name of its directory below --to."""
    converted: bool = False
    """True if a conversion wrote its recordings beside it."""


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options that hold for all sources."""

    config: list[Path]
    to: Path
    overrides: list[str]
    audio_root: Path | None
    workers: int
    worker_cpus: float
    worker_gpus: float
    rows: int
    most_refused: float
    part_seconds: float
    trust_recordings: bool


@app.command()
def prepare(
    *,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE[=WEIGHT]",
            help=".jsonl or .parquet file, or a folder of them",
            default_factory=list,
            show_default=False,
        ),
    ],
    from_hf: Annotated[
        list[str],
        typer.Option(
            metavar="DIR[=WEIGHT]",
            help="source that Hugging Face datasets saved to disk",
            default_factory=list,
            show_default=False,
        ),
    ],
    column: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=COLUMN",
            help="with --from-hf: column of a field; question_audio and facts.NAME are fields too",
            default_factory=list,
            show_default=False,
        ),
    ],
    split: Annotated[str | None, typer.Option(help="with --from-hf: split of a dataset that has several")] = None,
    config: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            default_factory=list,
            show_default=False,
            help="YAML file that names checkpoint, family and codec; later files change earlier ones",
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="directory to write the data to")],
    overrides: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="key=value",
            help="configuration key to override, for example model.max_model_len=4096",
            default_factory=list,
            show_default=False,
        ),
    ],
    only_convert: Annotated[
        bool, typer.Option("--only-convert", help="with --from-hf: write the dialogues and stop")
    ] = False,
    audio_root: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="directory that names of recordings are relative to",
            show_default="folder of their source",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, max=4096, help="number of encoders; 0: one per core")] = 0,
    worker_cpus: Annotated[float, typer.Option(min=0.01, max=4096, help="Ray CPUs of an encoder")] = 1.0,
    worker_gpus: Annotated[float, typer.Option(min=0.0, max=4096, help="Ray GPUs of an encoder")] = 0.0,
    rows: Annotated[int, typer.Option(min=1, max=1_000_000, help="smallest number of rows in a file")] = 4096,
    most_refused: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="largest share of unusable rows in a source")
    ] = 0.01,
    part_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", min=1.0, max=604_800, help="deadline for one file")
    ] = 3600.0,
    trust_recordings: Annotated[
        bool, typer.Option("--trust-recordings", help="do not check if sound files have changed")
    ] = False,
) -> None:
    """Encode dialogues and sound files as training data.

    A source is JSON lines or Parquet in the schema of docs/own-data.md, or a folder of such files. The codec of the
    configuration encodes the recordings, and the model's family encodes the turns. Ray Data runs both on this machine
    or on the cluster that is joined.

        duet prepare talks.jsonl --config my.yaml --to data/talks
        duet prepare talks.jsonl=3 jokes.parquet=1 --config my.yaml --to data/mixed --workers 8
        duet prepare --from-hf /data/spoken-squad --column question_audio=audio --config my.yaml --to data/squad

    The data of a source lie in a folder with its name below --to: prompts/, demonstrations/ for rows with a target,
    pairs/ for rows that also have a worse reply, and refused.jsonl with the reason for each unusable row. config.yaml
    below --to extends the configuration by these data, and mixes the sources by their weights:

        duet train --config data/mixed/config.yaml

    A second call encodes only what is new. It does nothing if source, recordings, codec, tokenizer and lengths are
    unchanged.
    """
    _check(sources, from_hf, config, conversion=bool(column or split or only_convert), only_convert=only_convert)
    given = _parse_sources(sources, taken=set())
    for source in _parse_sources(from_hf, taken={source.name for source in given}):
        from data.prepare.from_huggingface import convert  # imports `datasets`

        folder = to / source.name / "dialogues"
        print(f"{source.path}: {convert(source.path, folder, column, split, audio_root)}")
        given.append(Source(path=folder, weight=source.weight, name=source.name, converted=True))
    if only_convert:
        return
    options = PrepareOptions(
        config=config,
        to=to,
        overrides=overrides,
        audio_root=audio_root,
        workers=workers,
        worker_cpus=worker_cpus,
        worker_gpus=worker_gpus,
        rows=rows,
        most_refused=most_refused,
        part_seconds=part_seconds,
        trust_recordings=trust_recordings,
    )
    prepare_all(options, given)


def _check(sources: list[str], from_hf: list[str], config: list[Path], *, conversion: bool, only_convert: bool) -> None:
    """Raise InputError for options that do not go together. `conversion`: an option of --from-hf is given."""
    if not sources and not from_hf:
        raise InputError("duet prepare needs a source: a .jsonl or .parquet file, a folder of them, or --from-hf DIR")
    if not config and not only_convert:
        raise InputError("duet prepare needs --config, which names the checkpoint, its family and the codec")
    if conversion and not from_hf:
        raise InputError("--column, --split and --only-convert go with --from-hf")
    if sources and only_convert:
        raise InputError(f"--only-convert: {sources[0]} needs no conversion; give sources with --from-hf only")


def _parse_sources(texts: list[str], taken: set[str]) -> list[Source]:
    """Parse SOURCE[=WEIGHT] arguments. Raises InputError if two sources have the same name."""
    found: list[Source] = []
    for text in texts:
        path, weight = _split_weight(text)
        name = path.resolve().stem if path.suffix in (".jsonl", ".parquet") else path.resolve().name
        if name in taken or name in (CONFIG, ""):
            raise InputError(
                f"{path}: another source is named {name!r}, too; rename one, because its folder gets this name"
            )
        taken.add(name)
        found.append(Source(path=path, weight=weight, name=name))
    return found


def _split_weight(text: str) -> tuple[Path, float]:
    before, equals, after = text.rpartition("=")
    try:
        weight = float(after)
    except ValueError:
        return Path(text), 1.0  # a file name with "=" in it
    if not equals or not before:
        return Path(text), 1.0
    if not isfinite(weight) or weight <= 0:
        raise InputError(f"{text}: the weight {after} is not allowed; give a finite number above 0")
    return Path(before), weight


def joiner(address: str, workers: int, cpus: float) -> Callable[[], None]:
    """Return a function that connects to Ray on its first call.

    It joins the cluster at `address` or in RAY_ADDRESS, and starts a cluster on this machine without either.
    """
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


def prepare_all(options: PrepareOptions, given: Sequence[Source]) -> None:
    """Prepare each source and write the configuration. Raises InputError and TimeoutError."""
    config = _load_config(options, given)
    chosen = family(config.model.family)
    vocabulary = Vocabulary.from_checkpoint(Path(config.model.path), chosen.tokens)
    codec = load_codec(config, vocabulary)
    workers = options.workers or max(1, os.cpu_count() or 1)
    join = joiner(config.cluster.address, workers, options.worker_cpus)
    done: list[tuple[Source, Manifest]] = []
    try:
        for source in given:
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
                root=options.audio_root.absolute() if options.audio_root and not source.converted else None,
                folder=(options.to / source.name).absolute(),
            )
            preparation = Preparation(
                source=source.path.absolute(),
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
            done.append((source, preparation.run(join, print)))
    finally:
        import ray

        if ray.is_initialized():
            ray.shutdown()
    for source, manifest in done:
        print(f"{source.name:<24}{_describe(manifest)}")
        if manifest.refused:
            print(f"{'':<24}why: {options.to / source.name / REFUSED}")
    path = options.to / CONFIG
    path.write_text(_format_config(options, done), encoding="utf-8")
    print(f"duet train --config {path}")


def _encoder_version(config: Config, chosen: Family) -> str:
    """Return the version of the speech encoder, or "" without one. Raises InputError if the family needs one."""
    if chosen.hears == "features" and not config.data.encoder:
        raise InputError(f"data.encoder: family {chosen.name} hears features; name the encoder that computes them")
    if chosen.hears != "features" and config.data.encoder:
        raise InputError(f"data.encoder: {config.data.encoder}, but family {chosen.name} hears codes; leave it empty")
    if not config.data.encoder:
        return ""
    try:
        return str(load_object(config.data.encoder).load(Path(config.data.encoder_path)).version)
    except Exception as error:  # a custom encoder may raise anything
        raise InputError(
            f"data.encoder: {config.data.encoder} cannot load an encoder from {config.data.encoder_path!r}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _load_config(options: PrepareOptions, given: Sequence[Source]) -> Config:
    """Load the configuration with the data of the first source, so that it need not name existing data."""
    folder = options.to / given[0].name
    data = [f"data.{key}={folder / name}" for key, name in DATA_KEYS.items()]
    return load_config(options.config, [*options.overrides, *data])


def _describe(manifest: Manifest) -> str:
    kept = ", ".join(f"{folder.rows:,} {name}" for name, folder in manifest.folders.items())
    why = ", ".join(f"{reason} {count:,}" for reason, count in manifest.refused.items())
    return f"{manifest.rows:,} rows: {kept}" + (f"; refused: {why}" if why else "")


def _format_config(options: PrepareOptions, done: Sequence[tuple[Source, Manifest]]) -> str:
    """Return YAML that extends the given configuration by the data."""
    data: dict[str, Any] = {}
    for key, name in DATA_KEYS.items():
        found = [
            {"path": str((options.to / source.name / name).absolute()), "weight": source.weight}
            for source, manifest in done
            if name in manifest.folders
        ]
        if found:
            data[key] = found[0]["path"] if len(found) == 1 else found
    files = [str(path.absolute()) for path in options.config]
    return OmegaConf.to_yaml(OmegaConf.create({"extends": files if len(files) > 1 else files[0], "data": data}))
