"""Kimi-Audio's language model: Qwen2 with a second branch and a second output layer, for speech.

    ids of a step ─▶ sum of both embeddings ─▶ layers 0 … k ─▶ layers k+1 … ─▶ norm ─▶ lm_head: text
                                                   │
                                                   └─▶ mimo_layers ─▶ mimo_norm ─▶ mimo_output: speech

Both embeddings are rows of one table, and both output layers span the whole vocabulary. A speaker's sound comes as
codes with the features of a Whisper encoder added, four frames of 50 Hz side by side:

    (embedding + adaptor(features)) · √2

After the technical report (arXiv 2504.18425) and the released code; names of configuration and parameters are those of
the released checkpoints, so that these are read and written as they are. Importing this module makes the architecture
known to transformers.

Ids are laid out as `speech.multistream_grammar` has them, the two of a step one behind the other: [B, 2T]. So is what
comes out:
the output at a text id's place predicts the text id of the next step, that at a speech id's place the speech id.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)

from speech.multistream_grammar import STREAMS


class KimiAudioConfig(Qwen2Config):
    """Qwen2's, and what the second branch adds. Defaults are the released model's."""

    model_type = "kimi_audio"
    kimia_mimo_layers: int = 6
    kimia_mimo_transformer_from_layer_index: int = 21
    """The layer whose output the speech branch goes on from."""
    kimia_mimo_audiodelaytokens: int = 6
    """Steps that speech is behind the text."""
    kimia_token_offset: int = 152064
    """Id of the first speech code."""
    kimia_text_output_vocab: int = 152064
    kimia_audio_output_vocab: int = 16896
    kimia_adaptor_input_dim: int = 5120
    use_whisper_feature: bool = True
    kimia_media_begin: int = 151661
    kimia_media_end: int = 151663


class VQAdaptor(nn.Module):
    """From encoder features to the width of the model."""

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layers = nn.Sequential(
            nn.Linear(config.kimia_adaptor_input_dim, width),
            nn.SiLU(),
            nn.Dropout(0.0),
            nn.Linear(width, width),
            nn.LayerNorm(width, eps=config.rms_norm_eps),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


class MoonshotKimiaModel(Qwen2PreTrainedModel):
    """Everything but the output layers."""

    config_class = KimiAudioConfig

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__(config)
        if not 0 <= config.kimia_mimo_transformer_from_layer_index < config.num_hidden_layers:
            raise ValueError(
                f"kimia_mimo_transformer_from_layer_index: {config.kimia_mimo_transformer_from_layer_index} is none of "
                f"the {config.num_hidden_layers} layers"
            )
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mimo_layers = nn.ModuleList(Qwen2DecoderLayer(config, 0) for _ in range(config.kimia_mimo_layers))
        for index, layer in enumerate(self.mimo_layers):
            attention: Any = layer.self_attn
            attention.layer_idx = config.num_hidden_layers + index  # in a cache, behind the others
        self.mimo_norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.use_whisper_feature:
            self.vq_adaptor = VQAdaptor(config)
        self.rotary_emb = Qwen2RotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def embed(self, input_ids: Tensor, heard: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, T, width] of ids [B, 2T]. heard: steps int64 [F] in the flattened [B · T], and the encoder's features of
        each, [F, kimia_adaptor_input_dim]."""
        text, speech = self.embed_tokens(input_ids).unflatten(1, (-1, STREAMS)).unbind(2)
        if heard is not None:
            steps, features = heard
            flat = speech.flatten(0, 1)
            both = (flat[steps] + self.vq_adaptor(features.to(flat.dtype))) * math.sqrt(2.0)
            speech = flat.index_put((steps,), both).view_as(speech)
        return text + speech

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        heard: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids: int64 [B, 2T]. attention_mask: bool [B, keys] or [B, 1, T, keys], over steps. position_ids: int64
        [B, T], of steps. heard: see `embed`. Returns outputs [B, 2T, width]."""
        hidden = self.embed(input_ids, heard)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        shared = {
            "attention_mask": mask,
            "position_embeddings": self.rotary_emb(hidden, position_ids),
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            **kwargs,
        }
        speech = hidden
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, **shared)
            if index == self.config.kimia_mimo_transformer_from_layer_index:
                speech = hidden
        for layer in self.mimo_layers:
            speech = layer(speech, **shared)
        outputs: Any = torch.stack([self.norm(hidden), self.mimo_norm(speech)], dim=2).flatten(1, 2)
        return BaseModelOutputWithPast(
            last_hidden_state=outputs, past_key_values=past_key_values if use_cache else None
        )


class MoonshotKimiaForCausalLM(Qwen2PreTrainedModel, GenerationMixin):
    """With both output layers. The name is the released one, which config.json holds."""

    config_class = KimiAudioConfig
    streams = STREAMS

    def __init__(self, config: KimiAudioConfig) -> None:
        super().__init__(config)
        self.model = MoonshotKimiaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.mimo_output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def output_layers(self) -> tuple[nn.Module, nn.Module]:
        """By stream."""
        return self.lm_head, self.mimo_output

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        """As the model below takes it. Returns logits [B, 2T, vocabulary] of the next step's ids, text and speech in
        turn."""
        found = self.model(input_ids=input_ids, **kwargs)
        by_stream = found.last_hidden_state.unflatten(1, (-1, STREAMS)).unbind(2)
        parts = [layer(hidden) for layer, hidden in zip(self.output_layers, by_stream, strict=True)]
        logits: Any = torch.stack(parts, dim=2).flatten(1, 2)
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)


AutoConfig.register(KimiAudioConfig.model_type, KimiAudioConfig, exist_ok=True)
AutoModelForCausalLM.register(KimiAudioConfig, MoonshotKimiaForCausalLM, exist_ok=True)
