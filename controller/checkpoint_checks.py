"""Whether what a configuration names can be built: the weights of its checkpoint, its codec, its raters.

Looks at the headers of weights and the signatures of classes, builds nothing heavy. Every refusal is an InputError.
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
"""How the names of those weights end that have a row for each token."""


def check_weights(config: Config, vocabulary: Vocabulary) -> dict[str, list[int]]:
    """The checkpoint's weights are all there, whole, one row a token; `model.freeze` names some of them, and
    `learner.lora` layers.

    Returns the shape of every tensor by its name.
    """
    directory = Path(config.model.path)
    files = check_checkpoint(directory, trust_remote_code=config.model.trust_remote_code)
    shapes: dict[str, list[int]] = {}
    for file in files:
        shapes |= _shapes(file)
    if check_exists(directory / INDEX):
        _check_index(directory, set(shapes))
    wanted = [vocabulary.size, _width(directory)]
    for name, shape in shapes.items():
        if name.endswith(TOKEN_WEIGHTS) and shape != wanted:
            raise InputError(f"model.path: {name} of {directory} has the shape {shape}; its config.json says {wanted}")
    _frozen(config, shapes)
    check_adapters_fit(config, shapes)
    return shapes


def lora_settings(config: Config) -> LoraConfig | None:
    """None: no adapters."""
    c = config.learner.lora
    return LoraConfig(r=c.r, lora_alpha=c.lora_alpha, target_modules=tuple(c.target_modules)) if c.r else None


def check_adapters_fit(config: Config, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the layers that get adapters, by name, as far as the checkpoint's tensors tell which are
    linear. Raises InputError for settings that do not fit them."""
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
    """Names of tensors that are not trained. Raises InputError as `frozen_names` does."""
    patterns = family(config.model.family).parameters(config.model.freeze)
    # The output layer is not in the file when it is tied to the embedding.
    return frozen_names(sorted({*shapes, "lm_head.weight"}), patterns)


def _shapes(file: Path) -> dict[str, list[int]]:
    """Of the tensors in a file; reads its header alone, which says how long the file must be."""
    try:
        with safe_open(file, framework="numpy") as weights:
            return {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"model.path: {file} cannot be read: {error}") from error


def _check_index(directory: Path, names: set[str]) -> None:
    index = parse_json(read_text(directory / INDEX), str(directory / INDEX))
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(file, str) for file in placed.values()):
        raise InputError(f"model.path: {directory / INDEX} has no weight_map of names and files")
    for name, file in placed.items():
        if Path(file).name != file or not check_exists(directory / file):
            raise InputError(f"model.path: {directory / INDEX} says {name} is in {file!r}, which is not there")
        if name not in names:
            raise InputError(f"model.path: {directory / INDEX} says {name} is in {file!r}, which does not have it")


def _width(directory: Path) -> object:
    """The size of a token's vector."""
    settings = parse_json(read_text(directory / "config.json"), str(directory / "config.json"))
    width = settings.get("hidden_size")
    if type(width) is not int or width < 1:
        raise InputError(f"model.path: {directory / 'config.json'} has hidden_size {width!r}, not a whole number")
    return width


def check_reward(config: Config, vocabulary: Vocabulary) -> None:
    """What the reward servers will load is there, takes its arguments, and the codec has the checkpoint's codes."""
    inspect_codec(config, vocabulary)
    for rater in config.reward.functions:
        check_rater(rater)
    if config.reward.audio_quality_fn:
        _loaded("reward.audio_quality_fn", config.reward.audio_quality_fn)


def check_rater(rater: RewardFunctionSection) -> None:
    """It is there, takes its arguments, and calls its score as the configuration does. It is not built."""
    key = f"reward.functions.{rater.name}"
    made = _loaded(key, rater.target)
    _check_arguments(key, rater, made)
    if hasattr(made, "check"):
        try:
            made.check(dict(rater.kwargs))
        except InputError as error:
            raise InputError(f"{key}.kwargs: {error}") from error
    if isinstance(made, type) and not callable(getattr(made, "rate", None)):
        raise InputError(f"{key}: {rater.target} is no rater; it has no method 'rate'")
    own = getattr(made, "name", None)
    if isinstance(own, str) and own != rater.name:
        raise InputError(f"reward.functions: {rater.target} calls its score {own!r}, not {rater.name!r}")


def load_codec(config: Config, vocabulary: Vocabulary) -> Codec:
    """The codec, which has a code for each speech token and no other."""
    named = config.reward.codec
    _codec_class(named)
    codec = _tried(named, lambda: build_codec(named.target, named.kwargs))
    return _of_vocabulary(codec, config, vocabulary)


def inspect_codec(config: Config, vocabulary: Vocabulary) -> Any:
    """What has the codec's numbers: its class, where that can `check` its files without loading them, as decoders that
    need a GPU must. Else the codec. Raises InputError as `load_codec` does."""
    named = config.reward.codec
    found = _codec_class(named)
    if not hasattr(found, "check"):
        return load_codec(config, vocabulary)
    further = {name: value for name, value in named.kwargs.items() if name != "path"}
    _tried(named, lambda: found.check(Path(named.kwargs["path"]), **further))
    return _of_vocabulary(found, config, vocabulary)


def _codec_class(named: ClassSection) -> Any:
    """Raises InputError where it is not there, or does not take the arguments."""
    found: Any = _loaded("reward.codec", named.target)
    if hasattr(found, "load"):
        parameters = list(inspect.signature(found.load).parameters.values())
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            allowed = ["path", *(parameter.name for parameter in parameters[1:])]
            if others := sorted(set(named.kwargs) - set(allowed)):
                raise InputError(f"reward.codec.kwargs: {others[0]!r} is not possible; allowed: {', '.join(allowed)}")
    return found


def _tried(named: ClassSection, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except InputError:
        raise
    except Exception as error:  # a codec of the user's own may raise anything
        raise InputError(f"reward.codec: {named.target} does not load {named.kwargs['path']}: {error!r}") from error


def _of_vocabulary(codec: Any, config: Config, vocabulary: Vocabulary) -> Any:
    codes = _tried(config.reward.codec, lambda: codec.codebook)
    if codes != vocabulary.codebook:
        raise InputError(
            f"reward.codec: the codec has {codes} codes, the tokenizer of {config.model.path} has "
            f"{vocabulary.codebook} speech tokens"
        )
    return codec


def _loaded(key: str, use: str) -> Callable:
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
    except (ValueError, TypeError):  # of compiled code, which does not say
        return
    try:
        signature.bind(**named.kwargs)
    except TypeError as error:
        given = ", ".join(map(str, named.kwargs)) or "no arguments"  # their names: a value may be a secret
        raise InputError(f"{key}: {named.target} cannot be called with {given}: {error}") from error
