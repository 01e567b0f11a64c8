"""The pre-flight checks in their order, and the context in which a check leaves results for later checks.

An exception in a check becomes a finding of this check.
"""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
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
    """An earlier check did not provide a result that this check needs. The message names the result."""


@dataclass(kw_only=True)
class CheckContext:
    """Results of the checks so far. None: not checked yet, or the check failed."""

    files: Path | list[Path]
    """Configuration files."""
    overrides: list[str]
    config: Config | None = None
    machine: Machine | None = None
    cluster: list[Node] = field(default_factory=list)
    """Nodes of the cluster that a run joins; empty if the run starts its own."""
    settings: dict[str, Any] | None = None
    """The checkpoint's config.json."""
    family: Family | None = None
    vocabulary: Vocabulary | None = None
    shape: ModelShape | None = None
    codec: Codec | None = None
    prompts: list[Prompt] | None = None
    """A few prompts for the rater's example."""
    demonstrations: list[Demonstration] | None = None
    """The first few demonstrations with speech."""
    findings: list[Finding] = field(default_factory=list)
    """Findings so far."""

    def require(self, name: str) -> Any:
        """Return a result of an earlier check. Raises CheckUnknown without one."""
        found = getattr(self, name)
        if found is None or found == []:
            raise CheckUnknown(DESCRIPTIONS[name])
        return found


DESCRIPTIONS = {
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
"""Names of the results in findings."""


CHECK_TIMEOUT_S = 600.0
"""Deadline for one check. Data of millions of rows take minutes."""


def examine(files: Path | list[Path], overrides: list[str], timeout_s: float = CHECK_TIMEOUT_S) -> Iterator[Finding]:
    """Run all checks on a configuration and yield each finding at once. Raises nothing."""
    case = CheckContext(files=files, overrides=overrides)
    for name, check in CHECKS.items():
        for finding in run_with_timeout(timeout_s, name, partial(check, case)):
            case.findings.append(finding)
            yield finding
        if case.config is None and name == "configuration":
            return


def run_with_timeout(timeout_s: float, name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check in a thread and return its findings. An exception or a timeout becomes the last finding."""
    reporter, page, found = CheckReporter(name), PAGES.get(name, ""), list[Finding]()

    def run() -> None:
        try:
            for finding in check():
                found.append(finding)
        except CheckUnknown as missing:
            found.append(reporter.warning(f"not checked: {missing} is not known", "fix the errors above and run again"))
        except InputError as error:
            found.append(reporter.error(str(error), page))
        except Exception as error:  # an error of the check, or of code that the configuration names
            message = " ".join(redact(f"{type(error).__name__}: {error}").split())
            found.append(reporter.error(f"the check failed: {message}", page))

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    late = [reporter.error(f"the check did not finish within {timeout_s:g} s", page)] if thread.is_alive() else []
    return [*found, *late]


PAGES = {
    "configuration": "every key is explained in configs/schema.py",
    "cluster": "see docs/cluster.md",
    "model": "see docs/own-model.md",
    "data": "see docs/own-data.md",
    "codec": "see docs/own-model.md",
    "raters": "see docs/own-judge.md",
}
"""Documentation, by check."""


def _configuration(case: CheckContext) -> Iterator[Finding]:
    case.config = load_config(case.files, case.overrides)
    yield from settings.check_settings(case.config)
    yield from settings.check_arithmetic(case.config)


def _versions(case: CheckContext) -> Iterator[Finding]:
    yield from environment.check_versions(*environment.required(), environment.installed)
    yield from environment.check_tools(case.require("config"))


def _cluster(case: CheckContext) -> Iterator[Finding]:
    """Check the machine, or the cluster that a run joins."""
    config, reporter = case.require("config"), CheckReporter("cluster")
    case.machine, engine = environment.inspect_machine(), environment.engine()
    address = environment.address(config)
    if not address:
        yield from settings.check_schedule(config, case.machine, engine)
        return
    if address.startswith(("http://", "https://")):
        yield reporter.warning(
            f"RAY_ADDRESS is {address}, for job submission; the cluster's resources are visible from inside only",
            "submit the doctor as a job: ray job submit --working-dir . -- python -m duet doctor …",
        )
        return
    case.cluster = environment.nodes(address)
    hosts = ", ".join(node.host for node in case.cluster)
    yield reporter.fine(f"{address}: {len(case.cluster)} node{'s' if len(case.cluster) > 1 else ''}, {hosts}")
    yield from settings.check_cluster(config, case.cluster)
    yield from settings.check_engine(config, engine)


def _network(case: CheckContext) -> Iterator[Finding]:
    config = case.require("config")
    if not case.cluster:  # on a cluster Ray chooses the controller's node
        yield from environment.check_metrics(config)
    yield from environment.check_hosts(config)


def _model(case: CheckContext) -> Iterator[Finding]:
    config = case.require("config")
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
    config, shape, here = case.require("config"), case.require("shape"), case.require("machine")
    needs = memory.needs(config, shape, reference=build_objective(config).needs_reference)
    if case.cluster:
        yield from capacity.check_nodes(config, shape, needs, case.cluster)
        return
    if not environment.address(config):
        yield from capacity.check_memory(config, shape, needs, here)
    if config.weight_sync.backend == "shm":
        yield from capacity.check_shared_memory(config, shape, here)


def _disk(case: CheckContext) -> Iterator[Finding]:
    config, shape = case.require("config"), case.require("shape")
    existing = directory = Path(config.run.directory).absolute()
    while not existing.is_dir():
        existing = existing.parent
    if config.run.name != "auto" and (directory / config.run.name / "config.yaml").exists():
        yield capacity.DISK.error(
            f"run.name: {directory / config.run.name} already holds a run", "set another run.name"
        )
    if not os.access(existing, os.W_OK):
        yield capacity.DISK.error(f"run.directory: {existing} is not writable", "set another run.directory")
        return
    yield from capacity.check_disk(config, shape, directory, shutil.disk_usage(existing).free)


def _codec(case: CheckContext) -> Iterator[Finding]:
    case.codec = load_codec(case.require("config"), case.require("vocabulary"))
    yield from codec.check_codec(case.codec, case.vocabulary, case.require("demonstrations"))


def _data(case: CheckContext) -> Iterator[Finding]:
    config, vocabulary = case.require("config"), case.require("vocabulary")
    structure = reply_structure(config, case.require("family"), vocabulary)
    replies = _scan(
        lambda: data.scan_demonstrations(
            config,
            vocabulary,
            structure,
            _chain(scan_demonstrations, data_paths(config.data.sft), vocabulary),
        )
    )
    yield from replies.findings
    case.demonstrations = replies.demonstrations
    keep = {demonstration.prompt_id for demonstration in replies.demonstrations}
    scans = {}
    for key, files in _prompt_files(config).items():
        recordings = Recordings(files[0].parent)
        scans[key] = _scan(
            lambda key=key, files=files, recordings=recordings: data.scan_prompts(
                config, vocabulary, key, recordings.watch(_chain(scan_prompts, files, vocabulary)), keep
            )
        )
        yield from scans[key].findings
        yield from recordings.findings(key, _rate(config, vocabulary))
    train = scans.pop("data.prompts")
    case.prompts = train.prompts
    yield from data.check_overlap(train, {key.removeprefix("data.validation."): scan for key, scan in scans.items()})
    if pairs := config.algorithm.dpo.pairs_file:
        yield from data.scan_pairs(config, structure, scan_pairs(Path(pairs), vocabulary))


def _scan(scan: Callable[[], DataScan]) -> DataScan:
    """Run a scan. A file that cannot be read becomes a finding."""
    try:
        return scan()
    except InputError as error:
        return DataScan(findings=[data.DATA.error(str(error), data.PAGE)])


def _prompt_files(config: Config) -> dict[str, list[Path]]:
    held_out = {f"data.validation.{name}": [Path(file)] for name, file in config.data.validation.items()}
    return {"data.prompts": data_paths(config.data.prompts)} | held_out


def _chain(scan: Callable, files: list[Path], vocabulary: Vocabulary) -> Iterator:
    """Yield the rows of all files, one file after another."""
    return itertools.chain.from_iterable(scan(file, vocabulary) for file in files)


def _rate(config: Config, vocabulary: Vocabulary) -> int | None:
    """Return the codec's sample rate; None if it is unknown, which the codec's check reports."""
    try:
        return inspect_codec(config, vocabulary).rate
    except InputError:
        return None


def _raters(case: CheckContext) -> Iterator[Finding]:
    config, vocabulary, codec = case.require("config"), case.require("vocabulary"), case.require("codec")
    example = raters.example_reply(case.require("prompts"), case.require("demonstrations")[0], vocabulary, codec)
    if not example.own:
        yield raters.RATER.warning(
            f"no prompt of {source_name(config.data.prompts)} has the prompt_id of the first demonstration; the raters "
            "below score it as a reply to another prompt",
            "set the column prompt_id of each demonstration",
        )
    yield from raters.check_raters(config, example)


def _start(case: CheckContext) -> Iterator[Finding]:
    """Read what `duet train` reads at its start, so that no error is left for the run."""
    reporter = CheckReporter("start")
    if worst(case.findings) is Severity.ERROR:
        return
    inputs = read_inputs(case.require("config"))
    pairs = f", {len(inputs.pairs):,} pairs" if inputs.pairs else ""
    yield reporter.fine(
        f"a run can start: {len(inputs.prompts):,} prompts, {len(inputs.demonstrations):,} demonstrations{pairs}"
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
"""Checks by name, in their order."""
