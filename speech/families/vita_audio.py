"""VITA-Audio (arXiv 2505.03739): Qwen2.5-7B with GLM-4-Voice's 16,384 codes, one stream of chunks.

Balance and Boost hear codes, and have ten layers more that predict tokens ahead of time; sampling by the main head
alone needs none of them. Plus-Vanilla hears what SenseVoice makes of a sound. Names, ratios and templates as in the
released `tools/inference_sts.py` and `vita_audio/tokenizer_*.py`.
"""

from typing import Any

from speech.families.base import Family, Template
from speech.grammar import Interleave
from speech.released_layout import Config, ReleasedLayout, renamed
from speech.vocabulary import TokenNames

SYSTEM = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."


def _trunk(released: Config) -> dict[str, Any]:
    ahead = int(released.get("num_nextn_predict_layers", 0))
    left_out = ("auto_map", "num_nextn_predict_layers", "mtp_inference_mode", "layer_types")  # all layers are alike
    return {
        **{name: value for name, value in released.items() if name not in left_out},
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": int(released["num_hidden_layers"]) - ahead,
    }


def _parts(name: str, released: Config):
    """The layers that predict ahead follow the others."""
    layer = name.removeprefix("model.layers.").partition(".")[0]
    if layer.isdigit() and int(layer) >= _trunk(released)["num_hidden_layers"]:
        return ()
    return _NAMES(name, released)


_NAMES = renamed({r"(model\.(?:embed_tokens|layers\.\d+|norm)\..+|lm_head\.weight)": r"\1"})


def _family(name: str, ratios: list[int], **features: Any) -> Family:
    return Family(
        name=name,
        tokens=TokenNames(
            end_reply="<|im_end|>",
            pad="<|endoftext|>",
            begin_speech="<|begin_of_audio|>",
            end_speech="<|end_of_audio|>",
            slot="<|context_of_audio|>" if features else None,
            codebook=16384,
        ),
        interleave=Interleave.from_ratios(ratios),
        follows_pattern=False,
        template=Template(
            turns={role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")},
            speech=("\n<|begin_of_audio|>", "<|end_of_audio|>"),
            reply="<|im_start|>assistant\n",
            system=SYSTEM,
        ),
        original=ReleasedLayout(model_types=("qwen2_mtp", "qwen2_mtp_sensevoice"), config=_trunk, parts=_parts),
        parts={"embeddings": ("model.embed_tokens.*",), "layers": ("model.layers.*",), "output": ("lm_head.*",)},
        codec="speech.codecs.glm4_voice:Glm4VoiceCodec",
        **features,
    )


FAMILIES = (
    _family("vita-audio-balance", [1, 4, 3, 8, 4, 10]),
    _family("vita-audio-boost", [1, 10, 4, 10]),
    _family("vita-audio-plus", [1, 10, 4, 10], hears="features"),
)
