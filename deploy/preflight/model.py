"""The codec: a demonstration's speech to sound and back.

The checkpoint: what its tokens mean, and whether the engine can hold what the configuration asks for. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from configs.schema import Config
from deploy.preflight.finding import CheckReporter, Finding
from deploy.preflight.memory import ModelShape
from speech.codecs.base import Codec
from speech.types import Demonstration
from speech.vocabulary import Channel, Vocabulary

VOCABULARY, WEIGHTS = CheckReporter("vocabulary"), CheckReporter("weights")


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


def check_weights(config: Config, model: ModelShape, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """How large the model is, and how long a text it can read."""
    share = "all trained" if model.trained == model.parameters else f"{model.trained:,} of them trained"
    if model.adapters:
        share = f"{model.adapters:,} more of adapters, which alone are trained"
    yield WEIGHTS.fine(
        f"{model.parameters:,} parameters, {share}, {model.vocabulary} × {model.width} embedding"
        f"{', which is the output layer too' if model.tied else ''}; {model.layers} layers"
    )
    longest = settings.get("max_position_embeddings")
    if isinstance(longest, int) and longest < config.model.max_model_len:
        yield WEIGHTS.error(
            f"model.max_model_len: {config.model.max_model_len}, but the model has positions for {longest} tokens "
            "(max_position_embeddings); the engine would not start",
            f"set model.max_model_len={longest} or less",
        )


CODEC = CheckReporter("codec")


QUIET = 1e-3
"""Largest sample of a sound in which nothing can be heard: 60 dB below full scale."""


PAGE = "see docs/own-model.md for what a codec must do"


def check_codec(codec: Codec, vocabulary: Vocabulary, demonstrations: Sequence[Demonstration]) -> Iterator[Finding]:
    """Decodes a few demonstrations, encodes what that gives, and decodes it again."""
    if codec.rate <= 0 or codec.tokens_per_second <= 0:
        yield CODEC.error(f"it says {codec.rate} Hz and {codec.tokens_per_second} tokens a second", PAGE)
        return
    lengths, kept, loss, seconds = [], [], [], []
    for demonstration in demonstrations:
        codes = vocabulary.codes(demonstration.reply_ids)
        try:
            sound = codec.decode(codes)
        except Exception as error:  # a codec of the user's own may raise anything
            yield CODEC.error(f"it does not decode the demonstration of {demonstration.prompt_id}: {error!r}", PAGE)
            return
        if fault := _fault(sound.samples, sound.rate, codec.rate):
            yield CODEC.error(f"the demonstration of {demonstration.prompt_id} decodes to {fault}", PAGE)
            return
        seconds.append(sound.seconds)
        lengths.append(abs(sound.seconds - len(codes) / codec.tokens_per_second) * codec.tokens_per_second)
        try:
            again = np.asarray(codec.encode(sound))
        except Exception as error:  # of the same many classes
            yield CODEC.warning(
                f"it does not encode: {error!r}", "a run only decodes; encode is needed to make prompts of recordings"
            )
            return
        if again.ndim != 1 or not len(again) or again.min() < 0 or again.max() >= codec.codebook:
            yield CODEC.error(f"what it encodes is not codes in [0, {codec.codebook}): {again!r:.80}", PAGE)
            return
        same = min(len(codes), len(again))
        kept.append(float(np.mean(codes[:same] == again[:same])))
        loss.append(distance(sound.samples, codec.decode(again).samples))
    if max(lengths) > 1.0:
        yield CODEC.warning(
            f"sound is up to {max(lengths):.1f} tokens longer or shorter than {codec.tokens_per_second:g} tokens a "
            "second make it",
            "mend tokens_per_second of the codec: lengths and rates in metrics and reports are measured by it",
        )
    yield CODEC.fine(
        f"{codec.version}: {codec.rate:,} Hz, {codec.tokens_per_second:g} tokens a second; {len(kept)} demonstrations, "
        f"{sum(seconds):.1f} s, there and back: {np.mean(kept):.0%} of the codes are the same, and spectra differ by "
        f"{np.mean(loss):.1f} dB"
    )


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two sounds' log-magnitude spectra, dB, where the first can be heard."""
    length = min(len(one), len(other))
    spectra = [_decibels(samples[:length]) for samples in (one, other)]
    heard = spectra[0] > spectra[0].max() - 60.0
    return float(np.sqrt(np.mean((spectra[0] - spectra[1])[heard] ** 2)))


def _decibels(samples: np.ndarray, window: int = 512) -> np.ndarray:
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 2]
    return 20.0 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) + 1e-6)


def _fault(samples: np.ndarray, rate: int, expected: int) -> str:
    """What is wrong with a sound; "" for a good one."""
    if rate != expected:
        return f"{rate} Hz, and the codec says that it has {expected} Hz"
    if not len(samples):
        return "no sound at all"
    if not np.isfinite(samples).all():
        return "samples that are not finite"
    if np.abs(samples).max() < QUIET:
        return f"silence: no sample is above {QUIET:g}"
    return ""
