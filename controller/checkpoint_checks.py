"""Checks the model checkpoint, the codec and the raters of a configuration before anything starts.

Reads headers of weights and signatures of classes, and builds nothing heavy. Every failed check is an InputError.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from common.errors import InputError
from common.files import check_exists, parse_json, read_text
from configs.schema import ClassSection, Config, RewardFunctionSection
from learner.config import LoraConfig
from learner.parameter_filter import adapted_layers, frozen_names
from speech.checkpoint import check_checkpoint
from speech.codecs.base import Codec
from speech.families import family
from speech.registry import build_codec, load_object
from speech.vocabulary import Vocabulary

INDEX = "model.safetensors.index.json"
EMBEDDING = "embed_tokens.weight"
TOKEN_WEIGHTS = (EMBEDDING, "lm_head.weight")
"""Suffixes of weights with one row per token."""


def check_weights(config: Config, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Check that the weights are complete, have one row per token, and match `model.freeze` and `learner.lora`.

    Return the shape of every tensor by name.
    """
    directory = Path(config.model.path)
    files = check_checkpoint(directory, trust_remote_code=config.model.trust_remote_code)
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= _shapes(file)
    if check_exists(directory / INDEX):
        _check_index(directory, set(shapes))
    expected = [vocabulary.size, _hidden_size(directory)]
    for name, shape in shapes.items():
        if name.endswith(TOKEN_WEIGHTS) and shape != expected:
            raise InputError(f"model.path: {name} of {directory} has shape {shape}; its config.json says {expected}")
    _frozen(config, shapes)
    check_adapters_fit(config, shapes)
    return shapes


def lora_settings(config: Config) -> LoraConfig | None:
    """Return the LoRA settings; None: no adapters."""
    c = config.learner.lora
    return LoraConfig(r=c.r, lora_alpha=c.lora_alpha, target_modules=tuple(c.target_modules)) if c.r else None


def check_adapters_fit(config: Config, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Return inputs and outputs of the layers that get adapters, by name. Raise InputError for settings that match no
    layer. Tensors with two dimensions count as linear layers."""
    settings, end = lora_settings(config), ".weight"
    if settings is None:
        return {}
    linear = {
        name.removesuffix(end): shape
        for name, shape in shapes.items()
        if name.endswith(end) and len(shape) == 2 and not name.endswith(EMBEDDING)
    }
    return adapted_layers(linear, settings, {name.removesuffix(end) for name in _frozen(config, shapes)})


def _frozen(config: Config, shapes: Iterable[str]) -> set[str]:
    """Return names of frozen tensors. Raise InputError like `frozen_names`."""
    patterns = family(config.model.family).parameters(config.model.freeze)
    # An output layer tied to the embedding is not in the file.
    return frozen_names(sorted({*shapes, "lm_head.weight"}), patterns)


def _shapes(file: Path) -> dict[str, list[int]]:
    """Return the shapes of tensors in a file. Reads its header alone, which contains the file's length."""
    try:
        with safe_open(file, framework="numpy") as weights:
            return {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"model.path: cannot read {file}: {error}") from error


def _check_index(directory: Path, names: set[str]) -> None:
    index = parse_json(read_text(directory / INDEX), str(directory / INDEX))
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise InputError(f"model.path: {directory / INDEX} has no weight_map of names to files")
    for name, file in placed.items():
        if Path(file).name != file or not check_exists(directory / file):
            raise InputError(f"model.path: {directory / INDEX} says that {name} is in {file!r}, which does not exist")
        if name not in names:
            raise InputError(f"model.path: {directory / INDEX} says that {name} is in {file!r}, which lacks it")


def _hidden_size(directory: Path) -> object:
    """Return the model's hidden size."""
    settings = parse_json(read_text(directory / "config.json"), str(directory / "config.json"))
    size = settings.get("hidden_size")
    if type(size) is not int or size < 1:
        raise InputError(
            f"model.path: {directory / 'config.json'} has hidden_size {size!r}; expected a positive integer"
        )
    return size


def check_reward(config: Config, vocabulary: Vocabulary) -> None:
    """Check that codec and raters exist and accept their arguments, and that the codec has the checkpoint's codes."""
    inspect_codec(config, vocabulary)
    for rater in config.reward.functions:
        check_rater(rater)
    if config.reward.audio_quality_fn:
        _load("reward.audio_quality_fn", config.reward.audio_quality_fn)


def check_rater(rater: RewardFunctionSection) -> None:
    """Check that a rater exists, accepts its arguments and has the configured score name, without building it."""
    key = f"reward.functions.{rater.name}"
    made = _load(key, rater.target)
    _check_arguments(key, rater, made)
    if hasattr(made, "check"):
        try:
            made.check(dict(rater.kwargs))
        except InputError as error:
            raise InputError(f"{key}.kwargs: {error}") from error
    if isinstance(made, type) and not callable(getattr(made, "rate", None)):
        raise InputError(f"{key}: {rater.target} is not a rater: it has no method 'rate'")
    own = getattr(made, "name", None)
    if isinstance(own, str) and own != rater.name:
        raise InputError(
            f"reward.functions: {rater.target} names its score {own!r}; the configuration names it {rater.name!r}"
        )


def load_codec(config: Config, vocabulary: Vocabulary) -> Codec:
    """Load the codec. Raise InputError unless its codes are the speech tokens of the vocabulary."""
    named = config.reward.codec
    _codec_class(named)
    codec = _call(named, lambda: build_codec(named.target, named.kwargs))
    return _check_codebook(codec, config, vocabulary)


def inspect_codec(config: Config, vocabulary: Vocabulary) -> Any:
    """Return an object with the codec's properties: its class if that can `check` its files without loading them, as
    decoders that need a GPU must; otherwise the codec. Raise InputError like `load_codec`."""
    named = config.reward.codec
    found = _codec_class(named)
    if not hasattr(found, "check"):
        return load_codec(config, vocabulary)
    further = {name: value for name, value in named.kwargs.items() if name != "path"}
    _call(named, lambda: found.check(Path(named.kwargs["path"]), **further))
    return _check_codebook(found, config, vocabulary)


def _codec_class(named: ClassSection) -> Any:
    """Return the codec's class. Raise InputError if it is missing or rejects the arguments."""
    found: Any = _load("reward.codec", named.target)
    if hasattr(found, "load"):
        parameters = list(inspect.signature(found.load).parameters.values())
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            allowed = ["path", *(parameter.name for parameter in parameters[1:])]
            if others := sorted(set(named.kwargs) - set(allowed)):
                raise InputError(f"reward.codec.kwargs: unknown argument {others[0]!r}; allowed: {', '.join(allowed)}")
    return found


def _call(named: ClassSection, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except InputError:
        raise
    except Exception as error:  # a user's codec may raise anything
        raise InputError(f"reward.codec: {named.target} failed to load {named.kwargs['path']}: {error!r}") from error


def _check_codebook(codec: Any, config: Config, vocabulary: Vocabulary) -> Any:
    codes = _call(config.reward.codec, lambda: codec.codebook)
    if codes != vocabulary.codebook:
        raise InputError(
            f"reward.codec: the codec has {codes} codes, the tokenizer of {config.model.path} has "
            f"{vocabulary.codebook} speech tokens"
        )
    return codec


def _load(key: str, use: str) -> Callable:
    try:
        found = load_object(use)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    if not callable(found):
        raise InputError(f"{key}: {use} is a {type(found).__name__}, not a class or a function")
    return found


def _check_arguments(key: str, named: ClassSection, made: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(made)
    except (ValueError, TypeError):  # compiled code without a signature
        return
    try:
        signature.bind(**named.kwargs)
    except TypeError as error:
        given = ", ".join(map(str, named.kwargs)) or "no arguments"  # names alone: a value may be a secret
        raise InputError(f"{key}: {named.target} cannot be called with {given}: {error}") from error
