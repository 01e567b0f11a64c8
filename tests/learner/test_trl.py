"""Our losses and TRL's, each by its own code, on the same tiny model and the same text tokens.

TRL's trainers take tokens, the sampler's log-probabilities and rewards through their own preparation, forward pass and
loss. We go from judged replies over rows, micro-batches and the scorer to `micro_batch_loss`. The losses and the
gradients of every parameter agree to 1e-5. Without speech the definitions coincide, though they are put differently:

- TRL adds the KL to each token's loss, and one mean covers both. Here the KL of each channel has a mean of its own;
  where all is text, that runs over the same tokens with the same weights.
- TRL's KL is also multiplied by the ratio, gradient included, unless it is told not to (`use_bias_correction_kl`); the
  paper of GRPO and we have k3 alone.
- TRL names the mean over tokens "dapo" or "bnpo" (not the same thing over several processes) and takes the constant
  from `max_completion_length`.
- TRL corrects for the sampler only when vLLM sampled. It is told so; what it samples comes from its hook for rollouts.
- TRL divides advantages by the sample deviation of a group, we as the paper by that of the population. Losses are
  compared with advantages that are not divided (Dr. GRPO), the divided ones by themselves.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs import routes as routing
from controller.batch import GRPOBatchBuilder
from learner.collate import MicroBatch, collate
from learner.config import Objective, PairLoss, RouteLoss
from learner.losses import grpo_loss, micro_batch_loss
from learner.micro_batches import Item, TrainingPair, TrainingSample, split
from learner.policy import PolicyModel
from learner.step_metrics import StepMetrics
from reward.scoring import EPSILON, ScoringConfig, advantages, score_groups
from reward.types import Scorecard
from speech.grammar import TokenKind
from speech.types import Prompt, Reply, ReplyGroup
from tests.learner import trl_side
from tests.learner.trl_side import CAP, CLIP, CLIP_HIGH, END, LIMIT, PAD, SCORES, TEMPERATURE, WORDS, moved, sampled

pytestmark = pytest.mark.xdist_group("trl")

EXACT = 1e-5
AVERAGES = [
    ("grpo", "seq-mean-token-mean"),
    ("dapo", "token-mean"),
    ("bnpo", "token-mean"),
    ("dr_grpo", "seq-mean-token-sum-norm"),
]
"""TRL's name and ours."""
BETA = 0.2
ROOMS = ("cluster", "speech", "rollout", "reward", "learner", "controller", "playground")


@pytest.fixture(scope="module")
def trl():
    """Modules of TRL's trainers, by method."""
    with trl_side.imported("grpo_trainer", "rloo_trainer", "dpo_trainer") as modules:
        yield dict(zip(("grpo", "rloo", "dpo"), modules, strict=True))


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> nn.Module:
    """The start model, which is the reference."""
    return trl_side.tiny_model(tmp_path_factory.mktemp("start"))


def objective(**changes) -> Objective:
    plain = dict(clip=CLIP, clip_high=CLIP_HIGH, ratio="rollout", cap=CAP, kl_text=0.0, kl_speech=0.0)
    plain |= dict(
        routes=(RouteLoss(channel="text", weight=1.0),), boundary="speech", anchor_text=1.0, anchor_speech=1.0
    )
    return Objective(**plain | changes)


def rewarded(groups: list[ReplyGroup], average: str) -> list[Item]:
    """Return rows of the replies with SCORES."""
    routes = [routing.ScoreRoute()]
    cards = [[Scorecard(scores={"rater": s}, details={}, seconds=0.0) for s in scores] for scores in SCORES]
    scoring = ScoringConfig(total={"rater": 1.0})
    judged = [
        score_groups(group, of_group, scoring, routes, "dr_grpo") for group, of_group in zip(groups, cards, strict=True)
    ]
    policy = GRPOBatchBuilder(routes=routes, boundary="speech", average=average, constant=LIMIT, structure=None)
    return policy.batch(groups, judged, {}, [1.0] * len(groups)).items


def padded(items: list[Item], temperature: float = TEMPERATURE) -> MicroBatch:
    return collate(items, pad=PAD, routes=1, temperature=temperature, device=torch.device("cpu"))


def scored(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    kinds = torch.full((WORDS,), int(TokenKind.TEXT), dtype=torch.int8)
    return PolicyModel(model, kinds)(batch.input_ids, batch.sources, batch.targets, batch.allowed, batch.temperatures)


def our_loss(
    model: nn.Module, start: nn.Module, items: list[Item], settings: Objective, temperature: float = TEMPERATURE
) -> tuple[float, dict[str, Tensor], StepMetrics]:
    """Compute our loss at λ = 1, in two micro-batches."""
    model.zero_grad()
    total, tally = 0.0, StepMetrics()
    for part in split(items, 2):
        batch = padded(part, temperature)
        logp, entropy = scored(model, batch)
        with torch.no_grad():
            reference = scored(start, batch)[0] if settings.needs_reference else None
        loss, seen = micro_batch_loss(batch, logp, entropy, reference, settings, mix=1.0)
        loss.backward()
        total += loss.item()
        tally.merge(seen)
    return total, trl_side.gradients(model), tally


def assert_same(loss: float, gradients: dict[str, Tensor], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert loss == pytest.approx(theirs[0], abs=EXACT)
    assert gradients.keys() == theirs[1].keys()
    assert max(gradient.abs().max() for gradient in theirs[1].values()) > 0.05, "nothing to compare"
    gaps = {name: (gradients[name] - gradient).abs().max().item() for name, gradient in theirs[1].items()}
    assert max(gaps.values()) < EXACT, gaps


@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize(("loss_type", "average"), AVERAGES)
def test_clipped_policy_gradient(trl, start, tmp_path, loss_type, average, kl):
    """The replies come from an older policy, and the ratio exceeds both bounds."""
    old = moved(start, 1)
    groups = sampled(old, noise=0.0)
    trainer, batch = trl_side.grpo(
        trl["grpo"], old, groups, tmp_path, loss_type=loss_type, beta=kl, scale_rewards="none"
    )
    trainer.model.load_state_dict(moved(old, 2).state_dict())
    theirs = trl_side.loss_of(trainer, batch)
    loss, gradients, tally = our_loss(trainer.model, start, rewarded(groups, average), objective(kl_text=kl))
    assert_same(loss, gradients, theirs)
    seen = trl_side.watched(trainer)
    assert seen["clip_ratio/low_mean"] > 0.02
    assert seen["clip_ratio/high_mean"] > 0.02
    assert tally.mean("clip_fraction") == pytest.approx(seen["clip_ratio/region_mean"], abs=EXACT)
    assert tally.mean("entropy_text") == pytest.approx(seen["entropy"], abs=EXACT)
    if kl:
        assert seen["kl"] > 0.02
        assert tally.mean("kl_text") == pytest.approx(seen["kl"], abs=EXACT)


@pytest.mark.parametrize("kl", [0.0, 0.04])
@pytest.mark.parametrize(("loss_type", "average"), AVERAGES)
def test_truncated_importance_weights(trl, start, tmp_path, loss_type, average, kl):
    """Sampler and learner disagree about the same weights."""
    model = moved(start, 1)
    groups = sampled(model, noise=0.7)
    trainer, batch = trl_side.grpo(
        trl["grpo"], model, groups, tmp_path, vllm=True, loss_type=loss_type, beta=kl, scale_rewards="none"
    )
    weights = batch["importance_sampling_ratio"]
    assert (weights == CAP).sum() > 3
    assert (weights < 0.5).sum() > 3
    theirs = trl_side.loss_of(trainer, batch)
    settings = objective(ratio="truncated", kl_text=kl)
    loss, gradients, _ = our_loss(trainer.model, start, rewarded(groups, average), settings)
    assert_same(loss, gradients, theirs)


@pytest.mark.parametrize(("loss_type", "average"), AVERAGES)
def test_clipping_and_importance_weights_together(trl, start, tmp_path, loss_type, average):
    """Sampler, learner before the step and learner now all differ. Our learner takes one step per batch, so this case
    tests `grpo_loss`, not `micro_batch_loss`."""
    old = moved(start, 1)
    groups = sampled(old, noise=0.7)
    trainer, batch = trl_side.grpo(
        trl["grpo"], old, groups, tmp_path, vllm=True, loss_type=loss_type, beta=0.0, scale_rewards="none"
    )
    ours = padded(rewarded(groups, average))
    before = ours.dense(scored(old, ours)[0]).detach()
    trainer.model.load_state_dict(moved(old, 2).state_dict())
    theirs = trl_side.loss_of(trainer, batch)
    trainer.model.zero_grad()
    terms, _ = grpo_loss(
        ours.dense(scored(trainer.model, ours)[0]),
        ours.rollout_logprobs,
        before,
        ours.advantages[:, 0],
        clip=CLIP,
        clip_high=CLIP_HIGH,
        ratio="truncated",
        cap=CAP,
    )
    loss = (ours.weights * terms * (ours.channels >= 0)).sum()
    loss.backward()
    assert_same(loss.item(), trl_side.gradients(trainer.model), theirs)


def test_advantages(trl, start, tmp_path):
    groups = sampled(start, noise=0.0)
    plain, scaled = (
        trl_side.grpo(trl["grpo"], moved(start, 1), groups, tmp_path, beta=0.0, scale_rewards=kind)[1]["advantages"]
        for kind in ("none", "group")
    )
    # RLOO's trainer has no hook: it samples eight replies, which get SCORES all the same.
    trainer = trl_side.group_trainer(trl["rloo"], "RLOO", moved(start, 1), tmp_path, beta=0.0)
    others = trl_side.prepared(trainer, ["w2 w3", "w4"])["advantages"]
    for group, scores in enumerate(SCORES):
        place = slice(4 * group, 4 * group + 4)
        assert advantages(scores, "dr_grpo") == pytest.approx(plain[place].numpy(), abs=EXACT)
        assert advantages(scores, "rloo") == pytest.approx(others[place].numpy(), abs=EXACT)
        population, sample = np.std(scores) + EPSILON, np.std(scores, ddof=1) + EPSILON
        assert advantages(scores, "grpo") * population / sample == pytest.approx(scaled[place].numpy(), abs=EXACT)


def test_pairs(trl, start, tmp_path):
    from datasets import Dataset

    groups = sampled(start, noise=0.0)
    found = [(group.prompt, *group.replies[at : at + 2]) for group in groups for at in (0, 2)]
    texts = [
        {
            "prompt": trl_side.spelled(prompt.token_ids) + " ",
            "chosen": trl_side.spelled(chosen.token_ids),
            "rejected": trl_side.spelled(rejected.token_ids),
        }
        for prompt, chosen, rejected in found
    ]
    trainer = trl["dpo"].DPOTrainer(
        moved(start, 1),
        args=trl["dpo"].DPOConfig(**trl_side.arguments(tmp_path), loss_type="sigmoid", beta=BETA),
        train_dataset=Dataset.from_list(texts),
        processing_class=trl_side.word_tokenizer(),
    )
    theirs = trl_side.loss_of(trainer, trainer.data_collator(list(trainer.train_dataset)))

    def row(prompt: Prompt, reply: Reply) -> TrainingSample:
        ids = np.append(reply.token_ids[reply.token_ids != END], END).astype(np.int32)  # as TRL ends every reply
        return TrainingSample(prompt_ids=prompt.token_ids, reply_ids=ids, channels=trl_side.channels(ids))

    items: list[Item] = [
        TrainingPair(chosen=row(prompt, chosen), rejected=row(prompt, rejected), weight=1 / len(found))
        for prompt, chosen, rejected in found
    ]
    settings = objective(routes=(), pairs=PairLoss(channel="text", beta=BETA))
    loss, gradients, tally = our_loss(trainer.model, start, items, settings, temperature=1.0)
    assert_same(loss, gradients, theirs)
    seen = trl_side.watched(trainer)
    assert BETA * tally.mean("pair_margin") == pytest.approx(seen["rewards/margins"], abs=EXACT)
    assert tally.mean("pair_accuracy") == seen["rewards/accuracies"]


def test_no_room_imports_trl():
    """TRL is installed by the extra `dev` only."""
    root = Path(__file__).resolve().parents[2]
    files = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    assert len(files) > 50
    assert not [path for path in files if re.search(r"^\s*(import|from) trl\b", path.read_text(), re.MULTILINE)]
