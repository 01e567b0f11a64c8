"""Checks of the checkpoint, vocabulary and weights, and of the codec, by a round trip of demonstrations. Pure."""

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
    """Check the ids of each channel and the end of replies. `generation`: the checkpoint's generation settings."""
    table = vocabulary.channel_table()
    count = {channel: int((table == channel).sum()) for channel in Channel}
    last = vocabulary.speech_first + vocabulary.codebook - 1
    name = vocabulary.tokenizer.id_to_token
    boundaries = [name(i) for i in (vocabulary.begin_speech, vocabulary.end_speech) if i is not None]
    yield VOCABULARY.fine(
        f"text {count[Channel.TEXT]:,} ids; speech {count[Channel.SPEECH]:,}, {vocabulary.speech_first} "
        f"({name(vocabulary.speech_first)}) to {last} ({name(last)}); boundaries "
        f"{', '.join(boundaries) or 'none'}; end {name(vocabulary.end_reply)}; {int(np.sum(table < 0)):,} not "
        f"allowed in replies, {int(np.sum(table[vocabulary.text_size :] < 0)):,} of them padding rows of the embedding"
    )
    if count[Channel.TEXT] == 0:
        yield VOCABULARY.error("there is no text id: every token of the tokenizer is a speech code or reserved")
    ends = generation.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends or []
    if others := [i for i in ends if i != vocabulary.end_reply]:
        yield VOCABULARY.warning(
            f"eos_token_id is {', '.join(map(str, others))}, but replies of this family end with "
            f"{vocabulary.end_reply} ({name(vocabulary.end_reply)}); the engine stops at both, and a reply with "
            "the other end is malformed",
            f"set eos_token_id to {vocabulary.end_reply} in generation_config.json, or in config.json without one",
        )


def check_weights(config: Config, model: ModelShape, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the size of the model, and its greatest length."""
    share = "all trained" if model.trained == model.parameters else f"{model.trained:,} of them trained"
    if model.adapters:
        share = f"{model.adapters:,} more in adapters, only these trained"
    yield WEIGHTS.fine(
        f"{model.parameters:,} parameters, {share}, {model.vocabulary} × {model.width} embedding"
        f"{', tied to the output layer' if model.tied else ''}; {model.layers} layers"
    )
    longest = settings.get("max_position_embeddings")
    if isinstance(longest, int) and longest < config.model.max_model_len:
        yield WEIGHTS.error(
            f"model.max_model_len: {config.model.max_model_len}, but the model has positions for {longest} tokens "
            "(max_position_embeddings); the engine cannot start",
            f"set model.max_model_len={longest} or less",
        )


CODEC = CheckReporter("codec")


SILENCE_PEAK = 1e-3
"""Peak below which a sound counts as silent: 60 dB below full scale."""


PAGE = "see docs/own-model.md for what a codec must do"


def check_codec(codec: Codec, vocabulary: Vocabulary, demonstrations: Sequence[Demonstration]) -> Iterator[Finding]:
    """Decode a few demonstrations, encode the sound, and decode it again."""
    if codec.rate <= 0 or codec.tokens_per_second <= 0:
        yield CODEC.error(
            f"it reports {codec.rate} Hz and {codec.tokens_per_second} tokens/s; both must exceed 0", PAGE
        )
        return
    lengths, kept, loss, seconds = [], [], [], []
    for demonstration in demonstrations:
        codes = vocabulary.codes(demonstration.reply_ids)
        try:
            sound = codec.decode(codes)
        except Exception as error:  # a custom codec may raise anything
            yield CODEC.error(f"it cannot decode the demonstration of {demonstration.prompt_id}: {error!r}", PAGE)
            return
        if defect := _defect(sound.samples, sound.rate, codec.rate):
            yield CODEC.error(f"the demonstration of {demonstration.prompt_id} decodes to {defect}", PAGE)
            return
        seconds.append(sound.seconds)
        lengths.append(abs(sound.seconds - len(codes) / codec.tokens_per_second) * codec.tokens_per_second)
        try:
            again = np.asarray(codec.encode(sound))
        except Exception as error:  # here as well
            yield CODEC.warning(
                f"it cannot encode: {error!r}", "a run only decodes; fix encode to make prompts from recordings"
            )
            return
        if again.ndim != 1 or not len(again) or again.min() < 0 or again.max() >= codec.codebook:
            yield CODEC.error(f"it encodes to {again!r:.80}, which are not codes in [0, {codec.codebook})", PAGE)
            return
        same = min(len(codes), len(again))
        kept.append(float(np.mean(codes[:same] == again[:same])))
        loss.append(distance(sound.samples, codec.decode(again).samples))
    if max(lengths) > 1.0:
        yield CODEC.warning(
            f"sound is up to {max(lengths):.1f} tokens longer or shorter than {codec.tokens_per_second:g} tokens/s "
            "predict",
            "correct tokens_per_second of the codec, which metrics and reports use for lengths and rates",
        )
    yield CODEC.fine(
        f"{codec.version}: {codec.rate:,} Hz, {codec.tokens_per_second:g} tokens/s; round trip of {len(kept)} "
        f"demonstrations, {sum(seconds):.1f} s: {np.mean(kept):.0%} of the codes are the same, "
        f"spectra differ by {np.mean(loss):.1f} dB"
    )


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the RMS difference in dB of two log-magnitude spectra, where the first is audible."""
    length = min(len(one), len(other))
    spectra = [_decibels(samples[:length]) for samples in (one, other)]
    audible = spectra[0] > spectra[0].max() - 60.0
    return float(np.sqrt(np.mean((spectra[0] - spectra[1])[audible] ** 2)))


def _decibels(samples: np.ndarray, window: int = 512) -> np.ndarray:
    padded = np.pad(samples, (0, max(0, window - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: window // 2]
    return 20.0 * np.log10(np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) + 1e-6)


def _defect(samples: np.ndarray, rate: int, expected: int) -> str:
    """Describe the defect of a sound; "" without one."""
    if rate != expected:
        return f"{rate} Hz, but the codec reports {expected} Hz"
    if not len(samples):
        return "no samples"
    if not np.isfinite(samples).all():
        return "samples that are not finite"
    if np.abs(samples).max() < SILENCE_PEAK:
        return f"silence: no sample exceeds {SILENCE_PEAK:g}"
    return ""
