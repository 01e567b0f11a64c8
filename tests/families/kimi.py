"""A checkpoint of Kimi-Audio's real architecture and vocabulary, with small layers and random weights; and what tests
of it share.

Ids are the released ones: 151,643 of text, 421 special tokens, 16,384 codes from 152,064 on. Its replies end, which is
all that is not random: the outputs have a part that is always the same, and the ends of both streams lean on it.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from learner.packed_attention import use_packing
from learner.policy import PolicyModel
from rollout.vllm_engine import EngineConfig, SamplingConfig
from speech.families import family
from speech.grammar import token_kinds
from speech.modeling import load_pretrained
from speech.modeling.kimi_audio import KimiAudioConfig, MoonshotKimiaForCausalLM
from speech.types import Prompt, Turn
from speech.vocabulary import Vocabulary

WORDS, SPECIAL, CODES = 151_643, 421, 16_384
USED = [
    "[BOS]", "[EOS]", "<|im_msg_end|>", "<|im_user_msg_start|>", "<|im_assistant_msg_start|>",
    *(f"<|reserved_token_{i}|>" for i in range(4)), "[EOT]", *(f"<|reserved_token_{i}|>" for i in range(4, 12)),
    "<|im_media_begin|>", "<|reserved_token_12|>", "<|im_media_end|>", "<|reserved_token_13|>", "<|reserved_token_14|>",
    "<|im_kimia_text_blank|>", "<|im_kimia_text_eos|>", "<|reserved_token_15|>", "<|reserved_token_16|>",
    "<|im_kimia_user_msg_start|>", "<|im_kimia_assistant_msg_start|>", "<|reserved_token_17|>", "<|reserved_token_18|>",
    "<|reserved_token_19|>", "<|im_kimia_speech_ct_id|>", "<|im_kimia_speech_ctd_id|>",
]  # fmt: skip
"""Special tokens in the order of their ids, as in the released tokenizer; those behind have no use."""
WORD = "w{}"
"""Spelling of text tokens."""
FAMILY = family("kimi-audio")
SAMPLING = SamplingConfig(temperature=0.8, max_tokens=64)
BEGIN, END, STOP = 151661, 151667, 151663
BLANK, USER, ASSISTANT, SPEAK, OVER = 151666, 151670, 151671, 151676, 151645
FIRST = WORDS + SPECIAL
DELAY = 6
PROMPTS = 64


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({WORD.format(i): i for i in range(WORDS)}, unk_token=WORD.format(0)))
    made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    made.add_special_tokens([*USED, *(f"<|reserved_token_{i}|>" for i in range(20, 20 + SPECIAL - len(USED)))])
    return made


@torch.no_grad()
def write(directory: Path, *, seed: int = 0, **changes: object) -> Path:
    """changes: of the configuration. Returns the directory."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": WORDS + SPECIAL + CODES,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "kimia_mimo_layers": 2,
        "kimia_mimo_transformer_from_layer_index": 2,
        "max_position_embeddings": 8192,
        "rope_theta": 1_000_000.0,
        "initializer_range": 0.2,
        "pad_token_id": WORDS + SPECIAL - 1,
    }
    model = MoonshotKimiaForCausalLM(KimiAudioConfig(**(settings | changes))).eval()
    made = tokenizer()
    for layer in (model.model.layers[-1], model.model.mimo_layers[-1]):
        nn.init.normal_(layer.self_attn.v_proj.bias, std=2.0)
    said, codes = torch.randint(0, WORDS, (64, 16)), torch.randint(WORDS + SPECIAL, WORDS + SPECIAL + CODES, (64, 16))
    blank = torch.full_like(said, made.token_to_id("<|im_kimia_text_blank|>"))
    ends = (
        ("<|im_kimia_text_eos|>", model.lm_head, 0, (said, blank), slice(0, WORDS + SPECIAL)),
        ("<|im_media_end|>", model.mimo_output, 1, (blank, codes), slice(WORDS + SPECIAL, None)),
    )
    for name, layer, stream, step, others in ends:
        outputs = model.model(torch.stack(step, dim=-1).flatten(1)).last_hidden_state.unflatten(1, (-1, 2))
        _lean(layer, made.token_to_id(name), outputs[:, :, stream].flatten(0, 1), layer.weight[others])
    model.save_pretrained(directory)
    made.save(str(directory / "tokenizer.json"))
    return directory


def _lean(layer: nn.Linear, token: int, outputs: Tensor, others: Tensor) -> None:
    """Makes a token likely enough, after outputs such as [n, width], to come within ten steps or so."""
    common = outputs.mean(0)
    level = (outputs @ others.T).logsumexp(-1).mean() - 4.0
    layer.weight[token] = level * common / (common @ common)


def settings(checkpoint: Path, **changes) -> EngineConfig:
    usual = EngineConfig(
        checkpoint=str(checkpoint),
        dtype="float32",
        max_model_len=128,
        max_num_seqs=128,
        constrained=True,
        in_process=True,
        num_threads=1,
        cpu_kv_cache_gib=1,
        gpu_memory_utilization=0.9,
        tensor_parallel_size=1,
    )
    return replace(usual, **changes)


def prompts_of(vocabulary: Vocabulary) -> list[Prompt]:
    """Of several lengths."""
    turns = [
        Turn(role="user", text="w9 w8" if i % 2 else None, codes=np.arange(i, i + 3 + i % 7)) for i in range(PROMPTS)
    ]
    return [
        Prompt(id=str(i), text="", facts={}, token_ids=FAMILY.prompt([turn], vocabulary))
        for i, turn in enumerate(turns)
    ]


def scorer_of(checkpoint: Path, vocabulary: Vocabulary) -> PolicyModel:
    """As the learner scores."""
    model = load_pretrained(checkpoint, FAMILY, dtype=torch.float32, trust_remote_code=False)
    use_packing(model)
    return PolicyModel(model, torch.from_numpy(token_kinds(vocabulary)))


def valid(ids: np.ndarray) -> bool:
    """What a reply is, written down once more."""
    if len(ids) % 2:
        return False
    text, speech = ids.reshape(-1, 2).T.tolist()
    if END not in text or len(speech) < DELAY + 2:
        return False
    said, rest = text[: text.index(END)], text[text.index(END) + 1 :]
    return (
        bool(said)
        and max(said) < WORDS
        and set(rest) <= {BLANK}
        and set(speech[:DELAY]) <= {BLANK}
        and speech[-1] == STOP
        and all(FIRST <= token < FIRST + 16384 for token in speech[DELAY:-1])
    )
