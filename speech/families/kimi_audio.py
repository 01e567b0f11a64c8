"""Kimi-Audio-7B (Moonshot AI): two streams side by side, text and, six steps behind it, speech.

Names of tokens, order of a dialogue and what ends which stream are those of the released `kimia_infer` (prompt_manager,
`_generate_loop`). Ids of speech codes have no names in its tokenizer: config.json says where they begin.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.errors import InputError
from speech.families.base import Family
from speech.multistream_grammar import MultiStream
from speech.released_layout import Config, ReleasedLayout, renamed
from speech.types import Turn
from speech.vocabulary import TokenNames, Vocabulary

BLANK, END_TEXT, END_MESSAGE = "<|im_kimia_text_blank|>", "<|im_kimia_text_eos|>", "<|im_msg_end|>"
BEGIN_MEDIA, END_MEDIA = "<|im_media_begin|>", "<|im_media_end|>"
ROLES = {"user": "<|im_kimia_user_msg_start|>", "assistant": "<|im_kimia_assistant_msg_start|>"}
SPEAK = "<|im_kimia_speech_ctd_id|>"
"""After a sound that is to be answered in text and speech; the other task's, which has a name of its own, in text."""


class KimiAudio(Family):
    """Prompts are two streams as well: what is said stands in the text stream, all the rest in that of speech."""

    def prompt(self, turns: Sequence[Turn], vocabulary: Vocabulary) -> np.ndarray:
        """int32 [2 · steps], the text id of each step before its speech id."""
        if not turns or turns[-1].role == "assistant":
            raise InputError("a dialogue must end with a turn that the model can answer")
        streams = _Streams(vocabulary)
        for index, turn in enumerate(turns):
            if turn.role not in ROLES:
                raise InputError(f"role {turn.role!r} is not one that family {self.name} knows: {', '.join(ROLES)}")
            if turn.features is not None:
                raise InputError(f"a turn has features of an encoder; family {self.name} takes a turn's codes")
            if index == 0 or turns[index - 1].role != turn.role:
                streams.mark(ROLES[turn.role])
            last = index == len(turns) - 1 or turns[index + 1].role != turn.role
            if turn.role == "assistant":
                self._own(turn, streams)
            else:
                streams.say(turn.text)
                if turn.codes is not None:
                    streams.mark(BEGIN_MEDIA)
                    streams.play(turn.codes)
                    streams.mark(*(END_MEDIA, SPEAK) if last else (END_MEDIA,))
            if last:
                streams.mark(END_MESSAGE)
        streams.mark(ROLES["assistant"])
        return streams.ids()

    def _own(self, turn: Turn, streams: "_Streams") -> None:
        """A turn of the model's own, without the ends that it gave its streams then, or in text alone with that."""
        if turn.codes is None:
            streams.say(turn.text)
            streams.add(streams.id(END_TEXT), streams.blank)
            return
        assert isinstance(self.interleave, MultiStream)
        text = streams.encode(turn.text)
        spoken = [*[streams.blank] * self.interleave.delay, *streams.speech(turn.codes)]
        if len(text) > len(spoken):
            raise InputError(f"a turn of the model's has {len(text)} text tokens, but {len(turn.codes)} codes of sound")
        for step, sound in enumerate(spoken):
            streams.add(text[step] if step < len(text) else streams.blank, sound)


class _Streams:
    """Two rows of ids that grow together."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._steps: list[tuple[int, int]] = []
        self.blank = self.id(BLANK)

    def id(self, name: str) -> int:
        found = self._vocabulary.tokenizer.token_to_id(name)
        if found is None:
            raise InputError(f"the tokenizer has no token {name!r}, which dialogues of this model family need")
        return found

    def encode(self, text: str | None) -> list[int]:
        return self._vocabulary.tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def speech(self, codes: np.ndarray) -> list[int]:
        codes = np.asarray(codes, dtype=np.int64)
        wrong = codes[(codes < 0) | (codes >= self._vocabulary.codebook)]
        if len(wrong):
            raise InputError(f"a turn has code {wrong[0]}, outside the codebook of {self._vocabulary.codebook}")
        return (codes + self._vocabulary.speech_first).tolist()

    def add(self, text: int, speech: int) -> None:
        self._steps.append((text, speech))

    def say(self, text: str | None) -> None:
        for token in self.encode(text):
            self.add(token, self.blank)

    def play(self, codes: np.ndarray) -> None:
        for token in self.speech(codes):
            self.add(self.blank, token)

    def mark(self, *names: str) -> None:
        for name in names:
            self.add(self.blank, self.id(name))

    def ids(self) -> np.ndarray:
        return np.asarray(self._steps, dtype=np.int32).reshape(-1)


DELAY = 6
DIVISION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the released tokenizer divides a text (vLLM's tokenizers/kimi_audio.py)."""


def _config(released: Config) -> dict[str, Any]:
    """The released one as it is, without the code that comes with it: this model reads its names."""
    if (delay := released["kimia_mimo_audiodelaytokens"]) != DELAY:
        raise ValueError(f"kimia_mimo_audiodelaytokens is {delay}, not {DELAY}")
    kept = {key: value for key, value in released.items() if key != "auto_map"}
    return kept | {"model_type": "kimi_audio", "architectures": ["MoonshotKimiaForCausalLM"]}


KIMI_AUDIO = KimiAudio(
    name="kimi-audio",
    tokens=TokenNames(
        end_reply=END_MEDIA,
        pad="[EOS]",
        speech=None,
        codebook=16384,
        speech_offset="kimia_token_offset",
        end_text=END_TEXT,
        blank=BLANK,
        never_text=(
            END_MESSAGE,
            BEGIN_MEDIA,
            *ROLES.values(),
            SPEAK,
        ),
    ),
    interleave=MultiStream(delay=DELAY),
    # The released code puts blanks over whatever the model gave before speech begins and after the text has ended.
    follows_pattern=False,
    codec="speech.codecs.kimi_audio:KimiAudioCodec",
    streams=2,
    architecture="speech.modeling.kimi_audio:MoonshotKimiaForCausalLM",
    # Its configuration class is Qwen2's, and may have left it that name.
    original=ReleasedLayout(
        model_types=("kimi_audio", "qwen2"),
        config=_config,
        parts=renamed({r"(?!.*\.inv_freq$)(model\..*|lm_head\.weight|mimo_output\.weight)": r"\1"}),
        division=DIVISION,
    ),
    parts={
        "adaptor": ("model.vq_adaptor.*",),
        "speech": ("model.mimo_layers.*", "model.mimo_norm.*", "mimo_output.*"),
    },
)
FAMILIES = (KIMI_AUDIO,)
