"""Step-Audio-2-mini (arXiv 2507.16632): Qwen2-7B with CosyVoice2's 6,561 codes; it hears what its own encoder makes.

A reply goes on from `<tts_start>` and mixes both channels as the model likes, up to `<|EOT|>`. Numbered speech tokens
beyond the codebook are silence. Template and ids as in the released `stepaudio2.py`.
"""

from typing import Any

from speech.families.base import Family, Template
from speech.grammar import AnyOrder, TokenKind
from speech.released_layout import Config, ReleasedLayout, renamed
from speech.vocabulary import TokenNames


def _trunk(released: Config) -> dict[str, Any]:
    return {**released["text_config"], "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


FAMILIES = (
    Family(
        name="step-audio-2",
        tokens=TokenNames(
            end_reply="<|EOT|>",
            pad="<|endoftext|>",
            speech="<audio_{}>",
            codebook=6561,
            fillers=("<tts_pad>", "<tts_end>"),
            beyond="filler",
            slot="<audio_patch>",
        ),
        interleave=AnyOrder(TokenKind.TEXT | TokenKind.SPEECH | TokenKind.FILLER, chunk=(4, 8)),
        follows_pattern=True,
        template=Template(
            turns={
                "system": ("<|BOT|>system\n", "<|EOT|>"),
                "user": ("<|BOT|>human\n", "<|EOT|>"),
                "assistant": ("<|BOT|>assistant\n<tts_start>", "<|EOT|>"),
            },
            speech=("<audio_start>", "<audio_end>"),
            reply="<|BOT|>assistant\n<tts_start>",
            system="You are a helpful assistant.",
        ),
        original=ReleasedLayout(
            model_types=("step_audio_2",), config=_trunk, parts=renamed({r"(model\..+|lm_head\.weight)": r"\1"})
        ),
        hears="features",
        parts={"embeddings": ("model.embed_tokens.*",), "layers": ("model.layers.*",), "output": ("lm_head.*",)},
        codec="speech.codecs.cosyvoice2:CosyVoice2Codec",
    ),
)
