"""Tiny judge checkpoints for tests: real architectures, random weights, one token per byte."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperFeatureExtractor,
)

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% endif %}\n{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=8192,
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and per item of `SPECIAL`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = TEMPLATE
    return made


def write_reader(path: Path, seed: int = 0) -> Path:
    """Write a text-only judge: a Qwen2 of about 120,000 parameters."""
    words = tokenizer()
    torch.manual_seed(seed)
    config = Qwen2Config(vocab_size=len(words), tie_word_embeddings=False, eos_token_id=words.eos_token_id, **SIZES)
    Qwen2ForCausalLM(config).float().save_pretrained(path)
    words.save_pretrained(path)
    return path


def write_listener(path: Path) -> Path:
    """Write a judge that accepts audio: a Qwen2-Audio with one encoder layer."""
    words = tokenizer()
    torch.manual_seed(0)
    encoder = dict(encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=64, d_model=64, num_mel_bins=128)
    config = Qwen2AudioConfig(
        audio_config=encoder | dict(model_type="qwen2_audio_encoder", max_source_positions=1500),
        text_config=SIZES | dict(model_type="qwen2", vocab_size=len(words), eos_token_id=words.eos_token_id),
        audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>"),
    )
    Qwen2AudioForConditionalGeneration(config).float().save_pretrained(path)
    # Use the names of the published checkpoint; transformers 5.19 writes one more "model" into them.
    weights = load_file(path / "model.safetensors")
    published = {name.replace("language_model.model.model.", "language_model.model."): w for name, w in weights.items()}
    save_file(published, path / "model.safetensors", metadata={"format": "pt"})
    features = WhisperFeatureExtractor(feature_size=128)
    Qwen2AudioProcessor(feature_extractor=features, tokenizer=words, chat_template=TEMPLATE).save_pretrained(path)
    return path
