"""The tiny speech-token model: its configuration, and the training of the base checkpoint.

A Qwen2 of about 2 M parameters learns the mixed-quality source: each pass over the prompts draws new replies, so
nothing but the source's distribution can be learned from them. Where the opener and the answer are due the target is
the source's own distribution and not the one word drawn: the same gradient on average, with far less noise. The
learning rate decays to zero, hence more training on the same source changes little, and what reinforcement changes
later is its own doing.

Two auxiliary targets teach it to hear the question, which reply likelihood alone does slowly on so little data:
connectionist temporal classification (Graves et al. 2006) of the question's words from a middle layer, and a
classification of the operands, operation, answer and manner at the last prompt token. Their heads are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from playground import data, task

WIDTH, LAYERS, HEADS, KEY_HEADS = 192, 4, 6, 2
LONGEST = 256
HEARING_LAYER = 2
"""The layer whose output spells the question; the layers above it are left for the answer."""
ASK = ("operation", "left", "right", "answer", "pitch", "tempo")
ASK_SIZES = (len(task.OPERATIONS), 10, 10, len(task.ANSWERS), 2, 2)
SPELLING = (*task.NUMBERS[1:10], *task.OPERATIONS, "or")
"""Words of questions; class 0 of the spelling head is the blank."""
TEXT_WEIGHT = 6.0
"""Weight of text tokens in the training loss: five of them, one of which is the answer, against some thirty of
speech. It changes how fast each is learned, not the distribution that is learned."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the base is trained."""

    steps: int = 2500
    """Optimiser steps."""
    batch: int = 32
    """Replies a step."""
    rate: float = 3e-3
    """Peak learning rate; warm-up over 50 steps, then linear to zero."""
    spelling: float = 0.3
    """Weight of the spelling loss."""
    asking: float = 0.3
    """Weight of the classification loss."""


def make_model(tokenizer: Tokenizer, seed: int) -> Qwen2ForCausalLM:
    """An untrained model for this tokenizer, float32."""
    torch.manual_seed(seed)
    layout = data.WorldLayout(tokenizer)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=False,
        bos_token_id=layout.id(data.START),
        eos_token_id=layout.id(data.END),
        pad_token_id=layout.id(data.PAD),
        dtype="float32",
    )
    return Qwen2ForCausalLM(config)


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer as transformers wants it, for `save_pretrained` beside a model."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=data.PAD,
        pad_token=data.PAD,
        bos_token=data.START,
        eos_token=data.END,
        additional_special_tokens=[data.BEGIN_AUDIO, data.END_AUDIO],
        clean_up_tokenization_spaces=False,
        model_max_length=LONGEST,
    )


class _Heads(nn.Module):
    """The auxiliary heads."""

    def __init__(self) -> None:
        super().__init__()
        self.spelling = nn.Linear(WIDTH, len(SPELLING) + 1)
        self.asking = nn.Linear(WIDTH, sum(ASK_SIZES))


@dataclass(frozen=True)
class ModelBatch:
    """Rows of prompt and reply, padded on the right."""

    ids: Tensor
    """int64 [B, L]."""
    prompt_lengths: Tensor
    """int64 [B]."""
    weights: Tensor
    """float32 [B, L − 1]: loss weight of the next token at each position; 0 for prompts, padding, opener and answer."""
    spelling: Tensor
    """int64 [B, S]: the question's words as spelling classes."""
    spelling_lengths: Tensor
    """int64 [B]."""
    asking: Tensor
    """int64 [B, len(ASK)]."""


@dataclass(frozen=True)
class BatchSource:
    """The training source: prompts and the lines to draw replies from."""

    renderings: Sequence[task.Rendering]
    prompts: Sequence[list[int]]
    takes: data.SpokenTakes
    layout: data.WorldLayout

    @property
    def openers(self) -> list[int]:
        """Ids of the openers, fast first."""
        return [self.layout.id(task.OPENERS[tempo]) for tempo in ("fast", "slow")]

    @property
    def answers(self) -> list[int]:
        """Ids of the answers, in the order of task.ANSWERS."""
        return [self.layout.id(word) for word in task.ANSWERS]

    def batches(self, size: int, generator: np.random.Generator) -> Iterator[ModelBatch]:
        """Batches for ever; rows of similar length meet, batches come in random order.

        ValueError when there are fewer prompts than the 16 batches that are sorted by length together.
        """
        block = size * 16
        if len(self.prompts) < block:
            raise ValueError(f"{len(self.prompts)} prompts are fewer than 16 batches of {size}")
        while True:
            order = generator.permutation(len(self.prompts))
            for start in range(0, len(order) - block + 1, block):
                rows = [self._row(int(index), generator) for index in order[start : start + block]]
                rows.sort(key=lambda row: len(row[1]) + len(row[2]))
                for batch in generator.permutation(16):
                    yield self._collate(rows[batch * size : (batch + 1) * size])

    def _row(self, index: int, generator: np.random.Generator) -> tuple[task.Rendering, list[int], list[int]]:
        rendering = self.renderings[index]
        _, reply = data.demonstration(rendering, self.takes, self.layout, generator)
        return rendering, self.prompts[index], reply

    def _collate(self, rows: list[tuple[task.Rendering, list[int], list[int]]]) -> ModelBatch:
        longest = max(len(prompt) + len(reply) for _, prompt, reply in rows)
        first_speech, begin = self.layout.id(data.AUDIO.format(0)), self.layout.id(data.BEGIN_AUDIO)
        end = self.layout.id(data.END_AUDIO)
        ids = np.full((len(rows), longest), self.layout.id(data.PAD), dtype=np.int64)
        weights = np.zeros((len(rows), longest - 1), dtype=np.float32)
        for row, (_, prompt, reply) in enumerate(rows):
            stop = len(prompt) + len(reply)
            ids[row, :stop] = prompt + reply
            speech = [token >= first_speech or token in (begin, end) for token in reply]
            weights[row, len(prompt) - 1 : stop - 1] = np.where(speech, 1.0, TEXT_WEIGHT)
            weights[row, len(prompt) - 1 : len(prompt) + 1] = 0.0
        spelling = [[SPELLING.index(word) + 1 for word in rendering.fact.text.split()] for rendering, _, _ in rows]
        return ModelBatch(
            ids=torch.from_numpy(ids),
            prompt_lengths=torch.tensor([len(prompt) for _, prompt, _ in rows]),
            weights=torch.from_numpy(weights),
            spelling=nn.utils.rnn.pad_sequence([torch.tensor(words) for words in spelling], batch_first=True),
            spelling_lengths=torch.tensor([len(words) for words in spelling]),
            asking=torch.tensor([_asking(rendering) for rendering, _, _ in rows]),
        )


def _asking(rendering: task.Rendering) -> list[int]:
    fact = rendering.fact
    operation, answer = task.OPERATIONS.index(fact.operation), task.ANSWERS.index(fact.answer)
    return [operation, fact.left, fact.right, answer, *data.manner_index(rendering.manner)]


def losses(model: Qwen2ForCausalLM, heads: _Heads, batch: ModelBatch, source: BatchSource) -> dict[str, Tensor]:
    """Mean losses: "reply" (weighted next-token), "spelling", "asking".

    To watch only: "speech" (next-token, with the few certain text tokens), and "answer" and "opener", the divergence
    from the source's distribution, which is zero for a model that hears every question and has learned the source.
    """
    # Padding is on the right and attention is causal, so no mask is needed.
    hidden = model.model(input_ids=batch.ids, output_hidden_states=True, use_cache=False)
    rows, first = torch.arange(len(batch.ids)), batch.prompt_lengths - 1
    targets = batch.weights > 0
    each = nn.functional.cross_entropy(
        model.lm_head(hidden.last_hidden_state[:, :-1][targets]), batch.ids[:, 1:][targets], reduction="none"
    )
    weights = batch.weights[targets]
    divergence = {}
    drawn = torch.zeros(())
    for name, place, column, words, right in (
        ("opener", first, ASK.index("tempo"), source.openers, task.AXIS_RIGHT),
        ("answer", first + 1, ASK.index("answer"), source.answers, task.ANSWER_RIGHT),
    ):
        shares = torch.full((len(rows), len(words)), (1.0 - right) / (len(words) - 1))
        shares[rows, batch.asking[:, column]] = right
        predicted = model.lm_head(hidden.last_hidden_state[rows, place]).log_softmax(-1)[:, words]
        found = -(shares * predicted).sum(-1)
        drawn = drawn + TEXT_WEIGHT * found.sum()
        divergence[name] = (found.detach() + (shares * shares.log()).sum(-1)).mean()
    total = weights.sum() + TEXT_WEIGHT * 2 * len(rows)
    longest = int(batch.prompt_lengths.max())
    spelled = heads.spelling(hidden.hidden_states[HEARING_LAYER][:, :longest]).log_softmax(-1)
    spelling = nn.functional.ctc_loss(
        spelled.transpose(0, 1), batch.spelling, batch.prompt_lengths, batch.spelling_lengths, zero_infinity=True
    )
    asked = heads.asking(hidden.hidden_states[LAYERS - 1][rows, first]).split(list(ASK_SIZES), dim=-1)
    asking = torch.zeros(())
    for column, part in enumerate(asked):
        asking = asking + nn.functional.cross_entropy(part, batch.asking[:, column])
    return {
        "reply": ((each * weights).sum() + drawn) / total,
        "spelling": spelling,
        "asking": asking,
        "speech": each.mean().detach(),
        **divergence,
    }


def train(
    model: Qwen2ForCausalLM,
    source: BatchSource,
    settings: TrainingConfig,
    seed: int,
    watch: Callable[[int, dict[str, float]], None],
) -> None:
    """Trains `model` in place. `watch` gets the step and mean losses of every 100 steps, with "seconds"."""
    torch.manual_seed(seed)
    heads = _Heads()
    parameters = [*model.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    scale = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 50) * (1.0 - step / settings.steps)
    )
    batches = source.batches(settings.batch, np.random.default_rng(seed))
    sums: dict[str, float] = {}
    start = time.monotonic()
    model.train()
    for step in range(1, settings.steps + 1):
        found = losses(model, heads, next(batches), source)
        total = found["reply"] + settings.spelling * found["spelling"] + settings.asking * found["asking"]
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        scale.step()
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        if step % 100 == 0:
            watch(step, {**{name: value / 100 for name, value in sums.items()}, "seconds": time.monotonic() - start})
            sums = {}
    model.eval()
