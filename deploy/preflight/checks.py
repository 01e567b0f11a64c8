"""A setup under examination: what one check finds out, for those that build on it.

All checks, in the order in which one builds on another. Whatever goes wrong in a check is a finding of it.
"""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import check_exists, parse_json, read_text
from common.secrets import redact
from configs.load import load_config
from configs.schema import Config
from configs.validate import data_paths, source_name
from controller.build import build_objective
from controller.checkpoint_checks import check_adapters_fit, check_weights, inspect_codec, load_codec
from controller.inputs import read_inputs, reply_structure
from data.records import scan_demonstrations, scan_pairs, scan_prompts
from deploy.preflight import capacity, data, environment, memory, model, raters, settings
from deploy.preflight import model as codec
from deploy.preflight.data import DataScan, Recordings
from deploy.preflight.environment import Machine, Node
from deploy.preflight.finding import CheckReporter, Finding, Severity, worst
from deploy.preflight.memory import ModelShape
from speech.codecs.base import Codec
from speech.families import Family, family
from speech.types import Demonstration, Prompt
from speech.vocabulary import Vocabulary


class CheckUnknown(Exception):
    """What a check builds on was not found out. The message says what."""


@dataclass(kw_only=True)
class CheckContext:
    """What is known of a setup so far. None: not yet, or it could not be found out."""

    paths: Path | Sequence[Path]
    overrides: list[str]
    config: Config | None = None
    machine: Machine | None = None
    cluster: list[Node] = field(default_factory=list)
    """Nodes of the cluster that a run would join; none where it starts its own."""
    settings: dict[str, Any] | None = None
    """The checkpoint's config.json."""
    family: Family | None = None
    vocabulary: Vocabulary | None = None
    shape: ModelShape | None = None
    codec: Codec | None = None
    prompts: list[Prompt] | None = None
    """A few, for an example."""
    demonstrations: list[Demonstration] | None = None
    """The first few with speech."""
    findings: list[Finding] = field(default_factory=list)
    """So far."""

    def need(self, name: str) -> Any:
        """What is known by that name. Raises NotKnown."""
        found = getattr(self, name)
        if found is None or found == []:
            raise CheckUnknown(WORDS[name])
        return found


WORDS = {
    "config": "the configuration",
    "machine": "the machine",
    "settings": "the checkpoint's config.json",
    "family": "the model family",
    "vocabulary": "the vocabulary",
    "shape": "the shape of the model",
    "codec": "the codec",
    "prompts": "a prompt",
    "demonstrations": "a demonstration with speech",
}
"""What each part of a case is called."""


LIMIT = 600.0
"""Seconds for a check: data of millions of rows take minutes, nothing takes longer than this."""


def examine(paths: Path | Sequence[Path], overrides: list[str], seconds: float = LIMIT) -> Iterator[Finding]:
    """Everything that is found of a configuration, as it is found. Raises nothing."""
    case = CheckContext(paths=paths, overrides=overrides)
    for name, check in CHECKS.items():
        for finding in run_with_timeout(seconds, name, partial(check, case)):
            case.findings.append(finding)
            yield finding
        if case.config is None and name == "configuration":
            return


def run_with_timeout(seconds: float, name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check; the last one says how it failed when it raised, or was not done in so many seconds."""
    voice, page, found = CheckReporter(name), PAGES.get(name, ""), list[Finding]()

    def run() -> None:
        try:
            for finding in check():
                found.append(finding)
        except CheckUnknown as lack:
            found.append(voice.warning(f"not examined: {lack} is not known", "mend what is wrong above, and ask again"))
        except InputError as error:
            found.append(voice.error(str(error), page))
        except Exception as error:  # a fault of the check, or of code that the configuration names
            said = " ".join(redact(f"{type(error).__name__}: {error}").split())
            found.append(voice.error(f"could not be examined: {said}", page))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    late = [voice.error(f"not done within {seconds:g} s", page)] if thread.is_alive() else []
    return [*found, *late]


PAGES = {
    "configuration": "every key is explained in configs/schema.py",
    "cluster": "see docs/cluster.md",
    "model": "see docs/own-model.md",
    "data": "see docs/own-data.md",
    "codec": "see docs/own-model.md",
    "raters": "see docs/own-judge.md",
}
"""Where to read on, by check."""


def _configuration(case: CheckContext) -> Iterator[Finding]:
    case.config = load_config(case.paths, case.overrides)
    yield from settings.check_settings(case.config)
    yield from settings.check_arithmetic(case.config)


def _versions(case: CheckContext) -> Iterator[Finding]:
    yield from environment.check_versions(*environment.required(), environment.installed)
    yield from environment.check_tools(case.need("config"))


def _cluster(case: CheckContext) -> Iterator[Finding]:
    """What there is to run on."""
    config, voice = case.need("config"), CheckReporter("cluster")
    case.machine, engine = environment.inspect_machine(), environment.engine()
    address = environment.address(config)
    if not address:
        yield from settings.check_schedule(config, case.machine, engine)
        return
    if address.startswith(("http://", "https://")):
        yield voice.warning(
            f"RAY_ADDRESS is {address}, where jobs are handed in; what the cluster has can be seen from inside alone",
            "hand the doctor in as a job: ray job submit --working-dir . -- python -m duet doctor …",
        )
        return
    case.cluster = environment.nodes(address)
    hosts = ", ".join(node.host for node in case.cluster)
    yield voice.fine(f"{address}: {len(case.cluster)} node{'s' if len(case.cluster) > 1 else ''}, {hosts}")
    yield from settings.check_cluster(config, case.cluster)
    yield from settings.check_engine(config, engine)


def _network(case: CheckContext) -> Iterator[Finding]:
    config = case.need("config")
    if not case.cluster:  # else the controller is where Ray puts it
        yield from environment.check_metrics(config)
    yield from environment.check_hosts(config)


def _model(case: CheckContext) -> Iterator[Finding]:
    config = case.need("config")
    directory = Path(config.model.path)
    case.family = family(config.model.family)
    case.vocabulary = Vocabulary.from_checkpoint(directory, case.family.tokens)
    case.settings = _object(directory / "config.json")
    generation = directory / "generation_config.json"
    yield from model.check_vocabulary(
        case.vocabulary, _object(generation) if check_exists(generation) else case.settings
    )
    tensors = check_weights(config, case.vocabulary)
    frozen = family(config.model.family).parameters(config.model.freeze)
    rank, adapted = config.learner.lora.r, check_adapters_fit(config, tensors)
    case.shape = memory.read_model_shape(case.settings, tensors, frozen, rank, adapted)
    yield from model.check_weights(config, case.shape, case.settings)


def _object(file: Path) -> dict[str, Any]:
    found = parse_json(read_text(file), str(file))
    if not isinstance(found, dict):
        raise InputError(f"{file} is not a JSON object")
    return found


def _memory(case: CheckContext) -> Iterator[Finding]:
    config, shape, here = case.need("config"), case.need("shape"), case.need("machine")
    needs = memory.needs(config, shape, reference=build_objective(config).needs_reference)
    if case.cluster:
        yield from capacity.check_nodes(config, shape, needs, case.cluster)
        return
    if not environment.address(config):
        yield from capacity.check_memory(config, shape, needs, here)
    if config.weight_sync.backend == "shm":
        yield from capacity.check_shared_memory(config, shape, here)


def _disk(case: CheckContext) -> Iterator[Finding]:
    config, shape = case.need("config"), case.need("shape")
    near = directory = Path(config.run.directory).absolute()
    while not near.is_dir():
        near = near.parent
    if config.run.name != "auto" and (directory / config.run.name / "config.yaml").exists():
        yield capacity.DISK.error(
            f"run.name: {directory / config.run.name} already holds a run", "choose another run.name"
        )
    if not os.access(near, os.W_OK):
        yield capacity.DISK.error(f"run.directory: {near} cannot be written to", "name another run.directory")
        return
    yield from capacity.check_disk(config, shape, directory, shutil.disk_usage(near).free)


def _codec(case: CheckContext) -> Iterator[Finding]:
    case.codec = load_codec(case.need("config"), case.need("vocabulary"))
    yield from codec.check_codec(case.codec, case.vocabulary, case.need("demonstrations"))


def _data(case: CheckContext) -> Iterator[Finding]:
    config, vocabulary = case.need("config"), case.need("vocabulary")
    held_to = reply_structure(config, case.need("family"), vocabulary)
    shown = _scanned(
        lambda: data.scan_demonstrations(
            config, vocabulary, held_to, _each(scan_demonstrations, data_paths(config.data.sft), vocabulary)
        )
    )
    yield from shown.findings
    case.demonstrations = shown.demonstrations
    keep = {demonstration.prompt_id for demonstration in shown.demonstrations}
    scans = {}
    for key, files in _prompt_files(config).items():
        recordings = Recordings(files[0].parent)
        scans[key] = _scanned(
            lambda key=key, files=files, recordings=recordings: data.scan_prompts(
                config, vocabulary, key, recordings.watch(_each(scan_prompts, files, vocabulary)), keep
            )
        )
        yield from scans[key].findings
        yield from recordings.findings(key, _rate(config, vocabulary))
    train = scans.pop("data.prompts")
    case.prompts = train.prompts
    yield from data.check_overlap(train, {key.removeprefix("data.validation."): scan for key, scan in scans.items()})
    if pairs := config.algorithm.dpo.pairs_file:
        yield from data.scan_pairs(config, held_to, scan_pairs(Path(pairs), vocabulary))


def _scanned(scan: Callable[[], DataScan]) -> DataScan:
    """A file's scan; of one that cannot be read at all, what is wrong with it."""
    try:
        return scan()
    except InputError as error:
        return DataScan(findings=[data.DATA.error(str(error), data.PAGE)])


def _prompt_files(config: Config) -> dict[str, list[Path]]:
    held_out = {f"data.validation.{name}": [Path(file)] for name, file in config.data.validation.items()}
    return {"data.prompts": data_paths(config.data.prompts)} | held_out


def _each(scan: Callable, files: list[Path], vocabulary: Vocabulary) -> Iterator:
    """The rows of all, one behind another."""
    return itertools.chain.from_iterable(scan(file, vocabulary) for file in files)


def _rate(config: Config, vocabulary: Vocabulary) -> int | None:
    """The codec's sample rate; None where it cannot be had, which its own check says."""
    try:
        return inspect_codec(config, vocabulary).rate
    except InputError:
        return None


def _raters(case: CheckContext) -> Iterator[Finding]:
    config, vocabulary, codec = case.need("config"), case.need("vocabulary"), case.need("codec")
    one = raters.example_reply(case.need("prompts"), case.need("demonstrations")[0], vocabulary, codec)
    if not one.own:
        yield raters.RATER.warning(
            f"no prompt of {source_name(config.data.prompts)} has the id of the first demonstration; "
            "below, it is rated as a "
            "reply to another",
            "name the prompt of each demonstration in its column prompt_id",
        )
    yield from raters.check_raters(config, one)


def _start(case: CheckContext) -> Iterator[Finding]:
    """What `duet train` itself reads before anything starts: nothing that it refuses may be left unsaid here."""
    voice = CheckReporter("start")
    if worst(case.findings) is Severity.ERROR:
        return
    inputs = read_inputs(case.need("config"))
    pairs = f", {len(inputs.pairs):,} pairs" if inputs.pairs else ""
    yield voice.fine(
        f"a run would start: {len(inputs.prompts):,} prompts, {len(inputs.demonstrations):,} demonstrations{pairs}"
    )


CHECKS: dict[str, Callable[[CheckContext], Iterator[Finding]]] = {
    "configuration": _configuration,
    "versions": _versions,
    "cluster": _cluster,
    "model": _model,
    "memory": _memory,
    "disk": _disk,
    "network": _network,
    "data": _data,
    "codec": _codec,
    "raters": _raters,
    "start": _start,
}
"""By name, in order."""
