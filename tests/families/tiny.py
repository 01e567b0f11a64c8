"""Released checkpoints of each family, as small as can be: the real architecture, tensor names and ids, random weights.

Tokenizers are byte-pair encoders without merges, so that any text is a token a byte; the ids of their named tokens are
the real ones.
"""

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

QWEN = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
"""Special tokens of Qwen2.5 from id 151643 on; eight that are not special follow."""
QWEN_PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
VITA = (
    "<img> </img> <|context_of_img|> <|begin_of_vid|> <|end_of_vid|> <|context_of_vid|> <|begin_of_patch|> "
    "<|end_of_patch|> <|context_of_patch|> <|begin_of_audio|> <|end_of_audio|> <|begin_of_quad|> <|end_of_quad|> "
    "<|begin_of_ref|> <|end_of_ref|> <|begin_of_box|> <|end_of_box|> <|image|> <|video|> <|audio|>"
).split()
HEADS, HEAD, GROUPS, INNER, LAYERS = 2, 32, 1, 48, 2
WIDTH = HEADS * HEAD
STEADY = 7.5


def qwen(path: Path, *, special: Sequence[str], plain: Sequence[str] = (), base: int = 151643) -> None:
    """tokenizer.json with a Qwen2.5 vocabulary, and more tokens after it."""
    names = [AddedToken(name, special=True, normalized=False) for name in QWEN]
    names += [AddedToken(name, normalized=False) for name in QWEN_PLAIN]
    names += [AddedToken(name, special=True, normalized=False) for name in special]
    names += [AddedToken(name, normalized=False) for name in plain]
    _bytes(base, names).save(str(path / "tokenizer.json"))


def _bytes(base: int, names: Sequence[AddedToken]) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    vocabulary |= {f"unused {index}": index for index in range(len(letters), base)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(names))
    return tokenizer


def qwen2(
    ends: Mapping[int, int], layers: int = LAYERS, vocabulary: int = 168072, likely: float = 1.0
) -> tuple[dict, dict[str, Tensor]]:
    """config.json and tensors of a Qwen2 trunk. ends, likely: as of `_drawn`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        dtype="float32",
    )
    return config.to_dict(), _drawn(Qwen2ForCausalLM(config).state_dict(), ends, likely)


def _drawn(state: dict[str, Tensor], ends: Mapping[int, int], likely: float = 1.0) -> dict[str, Tensor]:
    """Weights that make log-probabilities differ, and replies end.

    The first component of every token's vector is large, and no layer writes to it, so that it is about the same in
    every output, `STEADY`: weights on it make the tokens that end something about a fifth as likely as all others that
    may come, times `likely`: a short run needs replies that end. ends: how many those are, by token.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, tensor in state.items():
        inner = name.endswith(("embed_tokens.weight", "word_embeddings.weight"))
        outer = name.endswith(("lm_head.weight", "output_layer.weight"))
        drawn[name] = torch.randn(tensor.shape, generator=generator) * (0.3 if inner or outer else 0.1)
        if name.endswith("norm.weight"):
            drawn[name] += 1.0
        elif inner:
            drawn[name][:, 0] = 10.0
        elif name.endswith(("o_proj.weight", "down_proj.weight", "dense.weight", "dense_4h_to_h.weight")):
            drawn[name][0] = 0.0
        elif outer:
            drawn[name][:, 0] = 0.0
            for token, others in ends.items():
                drawn[name][token, 0] = math.log(likely * others / 4) / STEADY
    return drawn


def _write(path: Path, config: dict, tensors: dict[str, Tensor], files: int = 1) -> Path:
    names = sorted(tensors)
    for number in range(files):
        part = {name: tensors[name].contiguous() for name in names[number::files]}
        name = f"model-{number + 1:05d}-of-{files:05d}.safetensors" if files > 1 else "model.safetensors"
        save_file(part, path / name, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))
    return path


def vita(path: Path, *, features: bool = False) -> Path:
    """Two layers, and without features one more that predicts ahead, with its projection and norms."""
    special = [*VITA[:11], "<|context_of_audio|>", *VITA[11:]] if features else VITA
    qwen(path, special=special, plain=[f"<|audio_{code}|>" for code in range(16384)])
    ahead = 0 if features else 1
    config, tensors = qwen2({151645: 151000, 151675: 16384}, LAYERS + ahead, likely=1.0 if features else 16.0)
    config |= {
        "model_type": "qwen2_mtp_sensevoice" if features else "qwen2_mtp",
        "architectures": ["Qwen2MTPSenseVoiceForCausalLM" if features else "Qwen2MTPForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_qwen2.Qwen2MTPForCausalLM"},
        "num_nextn_predict_layers": ahead,
    }
    for layer in range(ahead):
        tensors[f"model.mtp_projs.{layer}.weight"] = torch.randn(WIDTH, 2 * WIDTH)
        tensors[f"model.mtp_embed_norms.{layer}.weight"] = torch.randn(WIDTH)
        tensors[f"model.mtp_hidden_norms.{layer}.weight"] = torch.randn(WIDTH)
    if features:
        tensors["model.audio_projection.weight"] = torch.randn(WIDTH, 512)
    return _write(path, config, tensors, files=2)


def glm(path: Path) -> Path:
    """ChatGLM's layout, and its tokenizer as tiktoken's ranks."""
    special = (
        "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> <|observation|> "
        "<|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> <|begin_of_audio|> <|end_of_audio|>"
    ).split()
    first, codes = 151329, 152353
    names = [*special, *(f"<|reserved_{index}|>" for index in range(codes - first - len(special)))]
    added = {str(first + index): {"content": name, "special": True} for index, name in enumerate(names)}
    added |= {str(codes + code): {"content": f"<|audio_{code}|>", "special": False} for code in range(16384)}
    (path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokens = [bytes([value]) for value in range(256)] + [b"\xff" + index.to_bytes(4) for index in range(first - 256)]
    lines = (f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens))
    (path / "tokenizer.model").write_text("\n".join(lines) + "\n")
    config = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMForConditionalGeneration"],
        "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "padded_vocab_size": 168960,
        "vocab_size": 168960,
        "hidden_size": WIDTH,
        "ffn_hidden_size": INNER,
        "num_layers": LAYERS,
        "num_attention_heads": HEADS,
        "multi_query_attention": True,
        "multi_query_group_num": GROUPS,
        "kv_channels": HEAD,
        "seq_length": 1024,
        "layernorm_epsilon": 1.5625e-07,
        "rope_ratio": 1,
        "add_qkv_bias": True,
        "add_bias_linear": False,
        "tie_word_embeddings": False,
        "pad_token_id": 151329,
        "eos_token_id": [151329, 151336, 151338],
        "torch_dtype": "float32",
    }
    width, rows = WIDTH, (HEADS + 2 * GROUPS) * HEAD
    shapes = {
        "transformer.embedding.word_embeddings.weight": (168960, width),
        "transformer.output_layer.weight": (168960, width),
        "transformer.encoder.final_layernorm.weight": (width,),
        "transformer.rotary_pos_emb.inv_freq": (HEAD // 4,),
    }
    for layer in range(LAYERS):
        inside = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            "self_attention.query_key_value.weight": (rows, width),
            "self_attention.query_key_value.bias": (rows,),
            "self_attention.dense.weight": (width, HEADS * HEAD),
            "mlp.dense_h_to_4h.weight": (2 * INNER, width),
            "mlp.dense_4h_to_h.weight": (width, INNER),
        }
        shapes |= {f"transformer.encoder.layers.{layer}.{name}": shape for name, shape in inside.items()}
    return _write(
        path, config, _drawn({name: torch.empty(shape) for name, shape in shapes.items()}, {151336: 16384}), files=2
    )


def step(path: Path) -> Path:
    """Its tokens from id 151665 on up to the first code, 151696, in places of which some are not known."""
    special = ["<|BOT|>", "<|EOT|>", *(f"<|reserved_{index}|>" for index in range(21))]
    special += (
        "<audio_start> <audio_end> <audio_patch> <tts_start> <tts_end> <tts_pad> <|unknown_6|> <|unknown_7|>".split()
    )
    qwen(path, special=special, plain=[f"<audio_{code}>" for code in range(6562)])
    text, tensors = qwen2({151666: 158000}, vocabulary=158720)
    config = {"model_type": "step_audio_2", "architectures": ["StepAudio2ForCausalLM"], "text_config": text}
    tensors |= {"encoder.conv1.weight": torch.randn(8, 4, 3), "adapter.linear1.weight": torch.randn(8, 8)}
    return _write(path, config, tensors)


def omni(path: Path) -> Path:
    """The thinker with a piece of its ears, and a piece of the talker."""
    special = "<|AUDIO|> <|audio_bos|> <|audio_eos|> <|vision_bos|> <|vision_eos|> <|IMAGE|> <|VIDEO|>".split()
    qwen(path, special=special)
    text, tensors = qwen2({151645: 151000}, vocabulary=152064, likely=16.0)
    text |= {"model_type": "qwen2_5_omni_text"}
    text["rope_scaling"] = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
    config = {"model_type": "qwen2_5_omni", "thinker_config": {"text_config": text}}
    tensors = {f"thinker.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {
        "thinker.audio_tower.conv1.weight": torch.randn(8, 4, 3),
        "talker.model.embed_tokens.weight": torch.randn(8, 8),
    }
    return _write(path, config, tensors)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "vita-audio-boost": vita,
    "vita-audio-plus": lambda path: vita(path, features=True),
    "glm-4-voice": glm,
    "step-audio-2": step,
    "qwen2.5-omni": omni,
}
