"""The checkpoint: what its tokens mean, and whether the engine can hold what the configuration asks for. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from controller.config import Config
from controller.doctor.findings import Finding, Voice
from controller.doctor.memory import Shape
from speech.channels import Channel
from speech.vocabulary import Vocabulary

VOCABULARY, WEIGHTS = Voice("vocabulary"), Voice("weights")


def check_vocabulary(vocabulary: Vocabulary, generation: Mapping[str, Any]) -> Iterator[Finding]:
    """Which ids each channel has, and where replies end. generation: the checkpoint's settings for sampling."""
    table = vocabulary.channel_table()
    count = {channel: int((table == channel).sum()) for channel in Channel}
    last = vocabulary.speech_first + vocabulary.codebook - 1
    name = vocabulary.tokenizer.id_to_token
    boundaries = [name(i) for i in (vocabulary.begin_speech, vocabulary.end_speech) if i is not None]
    yield VOCABULARY.fine(
        f"text {count[Channel.TEXT]:,} ids; speech {count[Channel.SPEECH]:,}, {vocabulary.speech_first} "
        f"({name(vocabulary.speech_first)}) to {last} ({name(last)}); boundaries "
        f"{', '.join(boundaries) or 'none'}; end {name(vocabulary.end_reply)}; {int(np.sum(table < 0)):,} that no "
        "reply may contain, of which "
        f"{int(np.sum(table[vocabulary.text_size :] < 0)):,} are padding rows of the embedding"
    )
    if count[Channel.TEXT] == 0:
        yield VOCABULARY.error("no id is text: every token of the tokenizer is a speech code or reserved")
    ends = generation.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends or []
    if strange := [i for i in ends if i != vocabulary.end_reply]:
        yield VOCABULARY.warning(
            f"eos_token_id is {', '.join(map(str, strange))}, and replies of this family end with "
            f"{vocabulary.end_reply} ({name(vocabulary.end_reply)}); the engine stops at either, and a reply without "
            "its own end is malformed",
            f"set eos_token_id to {vocabulary.end_reply} in generation_config.json, or config.json where there is none",
        )


def check_weights(config: Config, model: Shape, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """How large the model is, and how long a text it can read."""
    share = "all trained" if model.trained == model.parameters else f"{model.trained:,} of them trained"
    if model.adapters:
        share = f"{model.adapters:,} more of adapters, which alone are trained"
    yield WEIGHTS.fine(
        f"{model.parameters:,} parameters, {share}, {model.vocabulary} × {model.width} embedding"
        f"{', which is the output layer too' if model.tied else ''}; {model.layers} layers"
    )
    longest = settings.get("max_position_embeddings")
    if isinstance(longest, int) and longest < config.model.max_length:
        yield WEIGHTS.error(
            f"model.max_length: {config.model.max_length}, but the model has positions for {longest} tokens "
            "(max_position_embeddings); the engine would not start",
            f"set model.max_length={longest} or less",
        )
