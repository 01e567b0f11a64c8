"""GLM-4-Voice-9B (arXiv 2412.02612): 13 text and 26 speech tokens in turn, without boundaries, ended by a user's turn.

Template as in the released `web_demo.py`. Released checkpoints are ChatGLM's; transformers has the same layers as
`Glm`, with queries, keys and values apart.
"""

import re
from typing import Any

from speech.families.base import Family, Template
from speech.grammar import Interleave
from speech.released_layout import Config, ReleasedLayout, TensorPart, renamed
from speech.vocabulary import TokenNames

SYSTEM = (
    "User will provide you with a speech instruction. Do it step by step. First, think about the instruction and "
    "respond in a interleaved manner, with 13 text token followed by 26 audio tokens. "
)

DIVISION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""As in the released `tokenization_chatglm.py`."""


def _trunk(released: Config) -> dict[str, Any]:
    heads, width = int(released["num_attention_heads"]), int(released["hidden_size"])
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": released["padded_vocab_size"],
        "hidden_size": width,
        "intermediate_size": released["ffn_hidden_size"],
        "num_hidden_layers": released["num_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": _groups(released),
        "head_dim": released.get("kv_channels", width // heads),
        "max_position_embeddings": released["seq_length"],
        "rms_norm_eps": released["layernorm_epsilon"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0 * released.get("rope_ratio", 1),
            "partial_rotary_factor": 0.5,
        },
        "attention_bias": bool(released.get("add_qkv_bias", True)),
        "tie_word_embeddings": bool(released.get("tie_word_embeddings", False)),
        "pad_token_id": released.get("pad_token_id"),
        "eos_token_id": released.get("eos_token_id"),
        "dtype": released.get("torch_dtype", released.get("dtype", "bfloat16")),
    }


def _groups(released: Config) -> int:
    shared = released.get("multi_query_attention", True)
    return int(released["multi_query_group_num"] if shared else released["num_attention_heads"])


def _parts(name: str, released: Config) -> tuple[TensorPart, ...]:
    found = re.fullmatch(r"transformer\.encoder\.layers\.(\d+)\.self_attention\.query_key_value\.(weight|bias)", name)
    if found is None:
        return _NAMES(name, released)
    layer, kind = found.groups()
    size, keys = int(_trunk(released)["head_dim"]), _groups(released)
    rows = {"q": int(released["num_attention_heads"]) * size, "k": keys * size, "v": keys * size}
    return tuple(TensorPart(f"model.layers.{layer}.self_attn.{one}_proj.{kind}", count) for one, count in rows.items())


_LAYER = r"transformer\.encoder\.layers\.(\d+)\."
_NAMES = renamed(
    {
        r"transformer\.embedding\.word_embeddings\.weight": "model.embed_tokens.weight",
        r"transformer\.encoder\.final_layernorm\.weight": "model.norm.weight",
        r"transformer\.output_layer\.weight": "lm_head.weight",
        _LAYER + r"(input|post_attention)_layernorm\.weight": r"model.layers.\1.\2_layernorm.weight",
        _LAYER + r"self_attention\.dense\.weight": r"model.layers.\1.self_attn.o_proj.weight",
        _LAYER + r"mlp\.dense_h_to_4h\.weight": r"model.layers.\1.mlp.gate_up_proj.weight",
        _LAYER + r"mlp\.dense_4h_to_h\.weight": r"model.layers.\1.mlp.down_proj.weight",
    }
)

FAMILIES = (
    Family(
        name="glm-4-voice",
        tokens=TokenNames(end_reply="<|user|>", pad="<|endoftext|>", codebook=16384),
        interleave=Interleave(chunks=((13, 26),), repeat_from=0, boundaries=False),
        follows_pattern=False,
        template=Template(
            start="[gMASK]<sop>",
            turns={
                "system": ("<|system|>\n", ""),
                "user": ("<|user|>\n", ""),
                "assistant": ("<|assistant|>streaming_transcription\n", ""),
            },
            speech=("<|begin_of_audio|>", "<|end_of_audio|>"),
            reply="<|assistant|>streaming_transcription\n",
            system=SYSTEM,
        ),
        original=ReleasedLayout(model_types=("chatglm",), config=_trunk, parts=_parts, division=DIVISION),
        parts={"embeddings": ("model.embed_tokens.*",), "layers": ("model.layers.*",), "output": ("lm_head.*",)},
        codec="speech.codecs.glm4_voice:Glm4VoiceCodec",
    ),
)
