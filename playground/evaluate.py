"""How good a checkpoint is on held-out prompts, with plain transformers sampling: the base's numbers in build.json.

Sampling is at temperature 1 over the whole vocabulary and unconstrained, so `well_formed` also says how often the
model keeps to the interleave pattern by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from data.records import read_prompts
from playground import data, raters, task
from playground.codec import PlaygroundCodec
from reward.types import MissingScore, SpokenReply
from speech.families import PLAYGROUND
from speech.grammar import check_reply_grammar, token_kinds
from speech.types import Finish, Prompt, Reply
from speech.vocabulary import Vocabulary

LONGEST_REPLY = 72
"""Tokens; the longest line of the training source has about 55."""


@dataclass(frozen=True)
class WorldEvaluation:
    """Means over prompts, one sampled reply each. `summary` rounds them for build.json."""

    prompts: int
    well_formed: float
    """Replies that follow the interleave pattern to their end."""
    answer_accuracy: float
    """Right in the text."""
    heard_accuracy: float
    """Heard as the text says."""
    spoken_right: float
    """The right answer is heard."""
    manner: float | None
    """Mean of the manner rater, 1..5, over replies it could measure; None when there are none."""
    manner_missing: float
    """Replies it could not measure."""
    right_probability: float | None
    """Mean probability of the right answer where the answer is due, over replies that give one."""
    top_accuracy: float | None
    """Of the same, the share whose most probable answer is right: the head-room that reinforcement can uncover."""

    def summary(self) -> dict[str, float | None]:
        return {name: None if value is None else round(value, 4) for name, value in vars(self).items()}


@torch.inference_mode()
def sample(
    model: Qwen2ForCausalLM, prompts: Sequence[Sequence[int]], vocabulary: Vocabulary, seed: int, batch: int = 128
) -> list[list[int]]:
    """One reply's ids for each prompt's ids, the end-of-reply token included when it came."""
    torch.manual_seed(seed)
    pad, end = vocabulary.pad, vocabulary.end_reply
    replies: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        width = max(len(row) for row in rows)
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        made = model.generate(  # type: ignore[misc]  # the mixin that has it is not among the declared bases
            input_ids=ids, attention_mask=ids.ne(pad).long(), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=LONGEST_REPLY, pad_token_id=pad, eos_token_id=end,
        )  # fmt: skip
        for row in made[:, width:].tolist():
            replies.append(row[: row.index(end) + 1] if end in row else row)
    return replies


@torch.inference_mode()
def answer_probabilities(
    model: Qwen2ForCausalLM, prompt: Sequence[int], reply: Sequence[int], layout: data.WorldLayout
) -> np.ndarray | None:
    """float [len(ANSWERS)], normalised over the answers, where the answer of `reply` is due; None without an answer."""
    answers = [layout.id(word) for word in task.ANSWERS]
    places = [index for index, token in enumerate(reply) if token in answers]
    if not places:
        return None
    ids = torch.tensor([[*prompt, *reply[: places[0]]]])
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1, answers]
    return logits.softmax(-1).numpy()


def spoken_reply(prompt: Prompt, ids: np.ndarray, vocabulary: Vocabulary, codec: PlaygroundCodec) -> SpokenReply:
    """What a listener gets of reply ids [T] sampled here: no log-probabilities are kept, hence NaN."""
    codes = vocabulary.codes(ids)
    reply = Reply(
        prompt_id=prompt.id,
        index=0,
        token_ids=ids.astype(np.int32),
        channels=vocabulary.channels(ids),
        logps=np.full(len(ids), np.nan, dtype=np.float32),
        weight_version=0,
        finish=Finish.STOP if ids[-1] == vocabulary.end_reply else Finish.LENGTH,
        defect=check_reply_grammar(ids, PLAYGROUND.interleave, token_kinds(vocabulary)),
    )
    waveform = codec.decode(codes) if codes.size else None
    return SpokenReply(prompt=prompt, reply=reply, text=vocabulary.text(ids), waveform=waveform)


def evaluate(
    model: Qwen2ForCausalLM, prompts: list[Prompt], vocabulary: Vocabulary, codec: PlaygroundCodec, seed: int
) -> WorldEvaluation:
    """Samples one reply a prompt and rates it."""
    replies = sample(model, [prompt.token_ids.tolist() for prompt in prompts], vocabulary, seed)
    layout = data.WorldLayout(vocabulary.tokenizer)
    answer, heard, manner = raters.Answer(), raters.Heard(), raters.Manner()
    columns: dict[str, list[float]] = {name: [] for name in ("formed", "right", "heard", "spoken", "share", "top")}
    manners: list[float] = []
    for prompt, ids in zip(prompts, replies, strict=True):
        spoken = spoken_reply(prompt, np.asarray(ids), vocabulary, codec)
        columns["formed"].append(spoken.reply.defect is None)
        columns["right"].append(answer.rate(spoken) == raters.HIGHEST)
        columns["heard"].append(heard.rate(spoken) == raters.HIGHEST)
        columns["spoken"].append(heard.detail(spoken)["spoken_right"] == "yes")
        score = manner.rate(spoken)
        if not isinstance(score, MissingScore):
            manners.append(score)
        found = answer_probabilities(model, prompt.token_ids.tolist(), ids, layout)
        if found is not None:
            place = task.ANSWERS.index(prompt.facts["answer"])
            columns["share"].append(found[place])
            columns["top"].append(found.argmax() == place)
    share = {name: float(np.mean(columns[name])) for name in ("formed", "right", "heard", "spoken")}
    return WorldEvaluation(
        prompts=len(prompts),
        well_formed=share["formed"],
        answer_accuracy=share["right"],
        heard_accuracy=share["heard"],
        spoken_right=share["spoken"],
        manner=_mean(manners),
        manner_missing=1.0 - len(manners) / len(prompts),
        right_probability=_mean(columns["share"]),
        top_accuracy=_mean(columns["top"]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def evaluate_world(world: Path, seed: int = 0, prompts: int | None = None) -> dict[str, WorldEvaluation]:
    """The shipped base on both held-out files of a world, the first `prompts` rows of each."""
    vocabulary = Vocabulary.from_checkpoint(world / "base", PLAYGROUND.tokens)
    codec = PlaygroundCodec.load(world / "codec")
    model = Qwen2ForCausalLM.from_pretrained(
        world / "base", dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    measured = {}
    for name in ("held_out", "held_out_facts"):
        rows = read_prompts(world / "data" / f"{name}.parquet", vocabulary)[:prompts]
        measured[name] = evaluate(model, rows, vocabulary, codec, seed)
    return measured
