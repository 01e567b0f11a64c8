"""TRL's side of `test_trl.py`: its own trainers around a tiny model, without vLLM; and the inputs of both sides."""

import copy
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from speech.types import Finish, Prompt, Reply, ReplyGroup
from speech.vocabulary import Channel

WORDS, PAD, END = 64, 0, 1
"""Size of the vocabulary, and the two ids in it that are not words."""
TEMPERATURE, CLIP, CLIP_HIGH, CAP, LIMIT = 0.8, 0.2, 0.3, 2.0, 12
SCORES = ((1.0, 2.0, 4.0, 5.0), (3.0, 3.5, 2.0, 5.0))
"""By group and reply."""
LENGTHS = ((3, 6, 10, 5), (8, 4, 7, 9))
"""Words of each reply."""


@contextmanager
def imported(*trainers: str) -> Iterator[list[ModuleType]]:
    """Import modules of `trl.trainer` as on a machine without vLLM, whose import takes long."""
    # TRL sets variables of other libraries when it is imported; tests that come later shall not see them.
    with patch.dict(os.environ, TRL_EXPERIMENTAL_SILENCE="1"):
        tools = importlib.import_module("trl.import_utils")
        with patch.object(tools, "is_vllm_available", lambda *_, **__: False):
            yield [importlib.import_module(f"trl.trainer.{name}") for name in trainers]


def tiny_model(directory: Path) -> nn.Module:
    """Return a random model of two layers. It stays in the directory, from which TRL loads its reference."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(directory)
    return Qwen2ForCausalLM.from_pretrained(directory)


def moved(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy that is some steps away."""
    generator = torch.Generator().manual_seed(seed)
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return other


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, WORDS)}}))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def spelled(ids: np.ndarray) -> str:
    return " ".join(f"w{i}" for i in ids if i != END)


def channels(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == END, Channel.END, Channel.TEXT).astype(np.int8)


@torch.no_grad()
def logps_of(model: nn.Module, prompt: np.ndarray, reply: np.ndarray) -> np.ndarray:
    """Return log-probabilities, float32 [T], of one reply without padding."""
    ids = torch.from_numpy(np.concatenate([prompt, reply]).astype(np.int64))
    logps = torch.log_softmax(model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1] / TEMPERATURE, -1)
    return logps.gather(-1, ids[len(prompt) :, None])[:, 0].numpy()


def sampled(model: nn.Module, noise: float) -> list[ReplyGroup]:
    """Return two groups of four replies. noise: distance of the sampler's log-probabilities from the model's."""
    rng = np.random.default_rng(1)
    groups = []
    for name, size, lengths in zip("ab", (3, 6), LENGTHS, strict=True):
        prompt = Prompt(id=name, token_ids=rng.integers(2, WORDS, size).astype(np.int32), text="", facts={})
        replies = []
        for index, length in enumerate(lengths):
            # The first reply of a group is cut off, it has no end.
            ids = np.append(rng.integers(2, WORDS, length), [END] * (index > 0)).astype(np.int32)
            logps = logps_of(model, prompt.token_ids, ids) + noise * rng.normal(size=len(ids))
            replies.append(
                Reply(
                    prompt_id=name,
                    index=index,
                    token_ids=ids,
                    channels=channels(ids),
                    logps=logps.astype(np.float32),
                    weight_version=0,
                    finish=Finish.STOP if index else Finish.LENGTH,
                    defect=None,
                )
            )
        groups.append(ReplyGroup(prompt=prompt, replies=replies))
    return groups


def arguments(directory: Path) -> dict:
    """Return the arguments common to all trainers."""
    return dict(output_dir=str(directory), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False)


def group_trainer(trl: ModuleType, name: str, model: nn.Module, directory: Path, **settings):
    """Return the trainer `name` for prompts with four replies each. It rewards every batch with SCORES.

    settings: Fields of its configuration, and the trainer's hook `rollout_func`.
    """
    from datasets import Dataset

    hooks = {key: settings.pop(key) for key in ("rollout_func",) if key in settings}
    return getattr(trl, f"{name}Trainer")(
        model,
        lambda completions, **_: [score for scores in SCORES for score in scores],
        getattr(trl, f"{name}Config")(
            **arguments(directory),
            per_device_train_batch_size=8,
            num_generations=4,
            num_iterations=2,  # has it score the replies with the model as it was before the step
            max_completion_length=LIMIT,
            temperature=TEMPERATURE,
            epsilon=CLIP,
            epsilon_high=CLIP_HIGH,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w2", "w3"]}),
        processing_class=word_tokenizer(),
        **hooks,
    )


def prepared(trainer, prompts: Sequence[str]) -> dict:
    """Return the batch that the trainer makes of four replies per prompt, before the loss."""
    trainer.current_gradient_accumulation_steps = 1
    return trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts for _ in range(4)])


def grpo(
    trl: ModuleType, model: nn.Module, groups: list[ReplyGroup], directory: Path, *, vllm: bool = False, **settings
):
    """Return GRPO's trainer and its batch of groups. vllm: whether the trainer assumes that vLLM sampled them."""
    prompts = [spelled(group.prompt.token_ids) for group in groups]
    replies = [reply for group in groups for reply in group.replies]

    def rollout(texts: list[str], trainer) -> dict:
        return {
            "prompt_ids": trainer.processing_class(texts)["input_ids"],
            "completion_ids": [reply.token_ids.tolist() for reply in replies],
            "logprobs": [reply.logps.tolist() for reply in replies],
        }

    trainer = group_trainer(
        trl,
        "GRPO",
        model,
        directory,
        rollout_func=rollout,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=CAP,
        use_bias_correction_kl=False,
        **settings,
    )
    trainer.use_vllm, trainer._last_loaded_step = vllm, 0
    return trainer, prepared(trainer, prompts)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def loss_of(trainer, batch: dict) -> tuple[float, dict[str, Tensor]]:
    """Return the trainer's loss and its gradients."""
    trainer.model.train().zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), gradients(trainer.model)


def watched(trainer) -> dict[str, float]:
    """Return what the trainer would log about the last loss."""
    return {name: values[-1] for name, values in trainer._metrics["train"].items()}
