"""Qwen2.5-Omni (arXiv 2503.20215) and Qwen3-Omni (arXiv 2509.17765): the thinker, which answers in text.

Its text is trained. The talker, which speaks from the thinker's hidden states, is neither trained nor run here: it
stays in the released checkpoint, and `duet export` puts the new thinker beside it. The thinker's three-part positions
are equal to plain ones where a prompt has no image or video.
"""

from typing import Any

from speech.families.base import Family, Template
from speech.grammar import AnyOrder, TokenKind
from speech.released_layout import Config, ReleasedLayout, renamed
from speech.vocabulary import TokenNames

_NAMES = renamed({r"thinker\.(model\..+|lm_head\.weight)": r"\1"})


def _family(name: str, model_type: str, trunk: str, architecture: str, marks: tuple[str, str, str], system: str):
    begin, slot, end = marks

    def config(released: Config) -> dict[str, Any]:
        text = dict(released["thinker_config"]["text_config"])
        for key in ("rope_parameters", "rope_scaling"):
            if text.get(key):
                text[key] = {k: v for k, v in text[key].items() if "mrope" not in k} | {"rope_type": "default"}
                text[key].pop("type", None)
        return {**text, "model_type": trunk, "architectures": [architecture]}

    return Family(
        name=name,
        tokens=TokenNames(end_reply="<|im_end|>", pad="<|endoftext|>", speech=None, slot=slot),
        interleave=AnyOrder(TokenKind.TEXT),
        follows_pattern=True,
        template=Template(
            turns={role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")},
            speech=(begin, end),
            reply="<|im_start|>assistant\n",
            system=system,
        ),
        original=ReleasedLayout(model_types=(model_type,), config=config, parts=_NAMES),
        hears="features",
        trained=("text",),
        parts={"embeddings": ("model.embed_tokens.*",), "layers": ("model.layers.*",), "output": ("lm_head.*",)},
    )


FAMILIES = (
    _family(
        "qwen2.5-omni",
        "qwen2_5_omni",
        "qwen2",
        "Qwen2ForCausalLM",
        ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
        "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
        "visual inputs, as well as generating text and speech.",
    ),
    _family(
        "qwen3-omni",
        "qwen3_omni_moe",
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>"),
        "",
    ),
)
