"""Registers architectures that transformers has and this release of vLLM lacks. Import it for the effect."""

from vllm import ModelRegistry
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.utils import PPMissingLayer


class GlmForCausalLM(LlamaForCausalLM):
    """GLM-4 in the layout of transformers: Llama layers with interleaved rotary embeddings on half of each head, and
    without a bias in the output projection."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for layer in self.model.layers:
            if not isinstance(layer, PPMissingLayer):
                layer.self_attn.rotary_emb.is_neox_style = False
                layer.self_attn.o_proj.bias = None


ModelRegistry.register_model("GlmForCausalLM", GlmForCausalLM)
