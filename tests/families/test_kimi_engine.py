"""Kimi-Audio's engine against the structure and against the learner."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.waiting import ActorUnusable
from common.errors import InputError
from learner.collate import collate
from learner.config import Objective, RouteLoss
from learner.losses import micro_batch_loss
from learner.micro_batches import TrainingSample
from learner.policy import PolicyModel
from rollout.multistream_engine import MultiStreamEngine
from rollout.vllm_engine import PartialWeightUpdate, RolloutRequest
from rollout.worker import RolloutWorker, WeightCheck
from speech.grammar import TokenKind, allowed_masks, check_reply_grammar, token_kinds
from speech.types import Finish, Prompt
from speech.vocabulary import Vocabulary
from tests.families.kimi import BLANK, END, FAMILY, FIRST, OVER, SAMPLING, STOP, prompts_of, scorer_of, settings, valid
from weight_sync.source import named_weights
from weight_sync.update import WeightUpdate

pytestmark = [pytest.mark.families, pytest.mark.timeout(300), pytest.mark.xdist_group("families-kimi-audio")]


@pytest.fixture(scope="module")
def vocabulary(checkpoint) -> Vocabulary:
    return Vocabulary.from_checkpoint(checkpoint, FAMILY.tokens)


@pytest.fixture(scope="module")
def prompts(vocabulary) -> list[Prompt]:
    return prompts_of(vocabulary)


@pytest.fixture
def scorer(checkpoint, vocabulary) -> PolicyModel:
    return scorer_of(checkpoint, vocabulary)


@pytest.fixture(scope="module")
def engine(checkpoint, vocabulary) -> MultiStreamEngine:
    return MultiStreamEngine(settings(checkpoint), FAMILY, vocabulary)


@pytest.fixture(scope="module")
def groups(engine, prompts):
    """256 replies."""
    return engine.generate(prompts, 4, SAMPLING, list(range(0, 4 * len(prompts), 4)), "w")


def rows_of(group, kinds: np.ndarray, **fields) -> list[TrainingSample]:
    return [
        TrainingSample(
            prompt_ids=group.prompt.token_ids,
            reply_ids=r.token_ids,
            channels=r.channels,
            allowed=allowed_masks(r.token_ids, FAMILY.interleave, kinds),
            rollout_logprobs=r.logps,
            **({"advantages": (1.0,), "weights": (1.0,)} | fields),
        )
        for r in group.replies
    ]


def gap(group, scorer: PolicyModel, vocabulary: Vocabulary) -> float:
    """Largest difference between what the sampler reported and what the learner computes, of all tokens of a group."""
    rows = rows_of(group, token_kinds(vocabulary))
    batch = collate(rows, routes=1, temperature=SAMPLING.temperature, device=torch.device("cpu"), streams=2)
    with torch.no_grad():
        logp, _ = scorer(**batch.policy_inputs())
    return (batch.dense(logp) - batch.rollout_logprobs).abs().max().item()


def test_replies_keep_to_the_structure(groups):
    replies = [reply for group in groups for reply in group.replies]
    assert len(replies) == 256
    ended = [reply for reply in replies if reply.finish == Finish.STOP]
    assert len(ended) > 204
    assert [reply.defect for reply in ended if reply.defect] == []
    assert all(valid(reply.token_ids) for reply in ended)
    assert {reply.defect for reply in replies if reply.finish == Finish.LENGTH} == {"the reply has no end"}
    assert max(len(reply.token_ids) for reply in replies) == SAMPLING.max_tokens
    assert len({len(reply.token_ids) for reply in replies}) > 10
    for reply in replies:
        chosen = reply.channels >= 0
        assert np.all(reply.logps[~chosen] == 0.0)
        assert np.all(reply.token_ids[~chosen] == BLANK)
        assert reply.logps[chosen].max() <= 0.0


def test_one_that_is_not_valid_is_marked(groups, checkpoint, vocabulary, prompts):
    """Replies of which a token is another, and those of an engine that is not held to the structure."""
    rng, kinds = np.random.default_rng(0), token_kinds(vocabulary)
    verdicts = []
    for reply in [reply for group in groups for reply in group.replies]:
        ids = reply.token_ids.copy()
        ids[rng.integers(len(ids))] = rng.choice([3, 1000, BLANK, END, STOP, OVER, FIRST, FIRST + 16383])
        verdicts.append(valid(ids))
        assert (check_reply_grammar(ids, FAMILY.interleave, kinds) is None) == verdicts[-1]
    assert 10 < sum(verdicts) < 246
    free = MultiStreamEngine(settings(checkpoint, constrained=False), FAMILY, vocabulary)
    drawn = [
        r for g in free.generate(prompts[:8], 4, replace(SAMPLING, max_tokens=20), [0] * 8, "w") for r in g.replies
    ]
    assert all((reply.defect is None) == valid(reply.token_ids) for reply in drawn)
    assert sum(reply.defect is not None for reply in drawn) > 30
    assert all(len(reply.token_ids) % 2 == 0 and np.isfinite(reply.logps).all() for reply in drawn)


def test_the_distribution_sampled_is_the_distribution_scored(groups, scorer, vocabulary):
    """Of both streams, temperature and structure included."""
    assert max(gap(group, scorer, vocabulary) for group in groups[:10]) < 1e-4


def test_tokens_come_as_often_as_their_probability_says(engine, prompts, scorer, vocabulary):
    """The end of the text, after one word: how often it comes against how likely it is said to be."""
    [group] = engine.generate(prompts[:1], 200, replace(SAMPLING, max_tokens=4), [0], "w")
    text = int(TokenKind.TEXT | TokenKind.END_TEXT)
    prompt, wanted = group.prompt.token_ids, []
    # What stands in the place of the first step's text gives what the second one's is drawn from.
    given = [torch.tensor([value]) for value in (len(prompt), END, text, SAMPLING.temperature)]
    for reply in group.replies:
        ids = torch.from_numpy(np.concatenate([prompt, reply.token_ids[:2]]).astype(np.int64))
        with torch.no_grad():
            wanted.append(scorer(ids[None], *given)[0].exp().item())
    ended = [reply.token_ids[2] == END for reply in group.replies]
    error = np.sqrt(np.sum([p * (1 - p) for p in wanted]))
    assert abs(sum(ended) - sum(wanted)) < 4 * error
    assert 5 < sum(ended) < 195


def test_replies_are_the_same_whoever_is_drawn_beside_them(checkpoint, vocabulary, prompts, groups, scorer):
    """Three rows for forty replies: taken up one by one, moved, prompts computed once or copied."""
    few = MultiStreamEngine(settings(checkpoint, max_num_seqs=3), FAMILY, vocabulary)
    again = few.generate(prompts[:10], 4, SAMPLING, list(range(0, 40, 4)), "w")
    for one, other in zip(again, groups, strict=False):
        for a, b in zip(one.replies, other.replies, strict=True):
            assert a.token_ids.tolist() == b.token_ids.tolist()
        assert gap(one, scorer, vocabulary) < 1e-4


def test_weights_change_under_replies_that_are_under_way(checkpoint, vocabulary, prompts, scorer, tmp_path):
    engine = MultiStreamEngine(settings(checkpoint), FAMILY, vocabulary)
    sequences = [
        np.concatenate([prompts[i].token_ids, FAMILY.reply("w1 w2", np.arange(4), vocabulary)]) for i in (0, 1)
    ]
    before = engine.probe(sequences)
    assert [len(found) for found in before] == [len(ids) - 2 for ids in sequences]
    order = RolloutRequest(number=7, prompt=prompts[0], group_size=4, sampling=replace(SAMPLING, max_tokens=40), seed=0)
    engine.submit([order])
    for _ in range(3):
        engine._step()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in scorer.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = {name: parameter.detach().clone() for name, parameter in named_weights(scorer.model)}
    save_file(weights, tmp_path / "w.safetensors")
    engine.load_weights([tmp_path / "w.safetensors"], 5)
    drawn = engine.run_for(60.0, "w")
    assert [number for number, _ in drawn] == [7] * 4
    assert {(reply.weight_version, reply.newest_version) for _, reply in drawn} == {(0, 5)}
    after = engine.probe(sequences)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0.1
    for ids, found in zip(sequences, after, strict=True):
        inputs = torch.from_numpy(ids.astype(np.int64))
        sources = torch.arange(len(ids) - 2)
        with torch.no_grad():
            logps, _ = scorer(inputs[None], sources, inputs[2:], torch.zeros_like(sources), torch.ones(len(sources)))
        assert np.abs(logps.numpy() - found).max() < 1e-4
    [group] = engine.generate(prompts[1:2], 4, SAMPLING, [0], "w")
    assert {reply.weight_version for reply in group.replies} == {5}
    assert gap(group, scorer, vocabulary) < 1e-4
    engine.submit([order])
    engine.abort_all()
    assert engine.run_for(1.0, "w") == []
    part = {"model.mimo_norm.weight": weights["model.mimo_norm.weight"] * 2}
    save_file(part, tmp_path / "part.safetensors")
    engine.load_weights([tmp_path / "part.safetensors"], 6, whole=False)
    assert engine.weight_version == 6
    with pytest.raises(PartialWeightUpdate, match=r"weights 7 were loaded partially: .*the update lacks"):
        engine.load_weights([tmp_path / "part.safetensors"], 7)
    save_file({"model.strange": torch.zeros(1)}, tmp_path / "strange.safetensors")
    with pytest.raises(PartialWeightUpdate, match="strange"):
        engine.load_weights([tmp_path / "strange.safetensors"], 8)
    assert engine.weight_version == 6


def test_what_does_not_fit_is_refused(checkpoint, vocabulary, engine, prompts):
    for count in (127, 128):
        ids = np.full(count, BLANK, dtype=np.int32)
        with pytest.raises(ValueError, match=f"has {count} tokens; allowed: multiples of 2 up to 126"):
            engine.submit(
                [
                    RolloutRequest(
                        number=0, prompt=replace(prompts[0], token_ids=ids), group_size=1, sampling=SAMPLING, seed=0
                    )
                ]
            )
    with pytest.raises(InputError, match=r"rollout.cpu_kv_cache_gib: 1e-06 leaves no memory"):
        MultiStreamEngine(settings(checkpoint, cpu_kv_cache_gib=1e-6), FAMILY, vocabulary)
    with pytest.raises(InputError, match=r"rollout.tensor_parallel_size: 2"):
        MultiStreamEngine(settings(checkpoint, tensor_parallel_size=2), FAMILY, vocabulary)


@pytest.mark.parametrize(("channel", "reached"), [("text", False), ("all", True)], ids=["wavalign", "full"])
def test_preference_reaches_the_speech_branch_only_where_it_is_asked_to(groups, scorer, vocabulary, channel, reached):
    objective = Objective(
        routes=(RouteLoss(channel=channel, weight=1.0),), clip=0.2, clip_high=0.2, ratio="truncated", cap=2.0,
        kl_text=0.0, kl_speech=0.0, boundary="speech", anchor_text=1.0, anchor_speech=1.0,
    )  # fmt: skip
    rows = [row for group in groups[:2] for row in rows_of(group, token_kinds(vocabulary))]
    batch = collate(
        rows, routes=1, temperature=SAMPLING.temperature, device=torch.device("cpu"), streams=2,
        scored=lambda item, row: objective.scored(row.channels, item, row),
    )  # fmt: skip
    loss, _ = micro_batch_loss(batch, *scorer(**batch.policy_inputs()), None, objective, mix=1.0)
    loss.backward()
    size = {name: p.grad.abs().max().item() for name, p in scorer.model.named_parameters() if p.grad is not None}
    assert size["lm_head.weight"] > 0
    assert size["model.layers.0.mlp.up_proj.weight"] > 0
    assert (size["mimo_output.weight"] > 0) == reached
    assert (size["model.mimo_layers.0.mlp.up_proj.weight"] > 0) == reached


def test_a_worker_takes_the_engine_of_the_family(checkpoint, vocabulary, prompts, scorer, tmp_path):
    """Without Ray: what it draws, and that it proves to hold the weights that it was given."""
    worker = RolloutWorker("rollout-0", settings(checkpoint), FAMILY, 0, "127.0.0.1", "127.0.0.1")
    assert worker.warm_up(prompts[:1], 2, SAMPLING) == "rollout-0"
    too_long = replace(prompts[1], token_ids=np.full(128, BLANK, dtype=np.int32))
    orders = [
        RolloutRequest(number=number, prompt=prompt, group_size=2, sampling=SAMPLING, seed=0)
        for number, prompt in enumerate([prompts[0], too_long])
    ]
    drawn = worker.run_for(orders, 60.0)
    assert [number for number, _ in drawn.replies] == [0, 0]
    assert [number for number, _ in drawn.rejected] == [1]
    with torch.no_grad():
        scorer.model.mimo_output.weight.mul_(1.1)
    weights = {name: parameter.detach().clone() for name, parameter in named_weights(scorer.model)}
    save_file(weights, tmp_path / "w.safetensors")
    ids = np.concatenate([prompts[0].token_ids, FAMILY.reply("w1", np.arange(3), vocabulary)])
    inputs, sources = torch.from_numpy(ids.astype(np.int64)), torch.arange(len(ids) - 2)
    with torch.no_grad():
        logps, _ = scorer(inputs[None], sources, inputs[2:], torch.zeros_like(sources), torch.ones(len(sources)))
    parcel = WeightUpdate(version=1, size=1, whole=True, path=tmp_path / "w.safetensors")
    report = worker.update(parcel, 0.5, WeightCheck(sequences=[ids], logps=[logps.numpy()]))
    assert report.version == 1
    assert report.logprob_diff < 1e-4
    assert worker.state() == {"name": "rollout-0", "weight_version": 1, "mix": 0.5, "metrics": None}
    save_file({"strange": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ActorUnusable, match="weights 2 were loaded partially"):
        worker.update(replace(parcel, version=2), 0.5, WeightCheck(sequences=[], logps=[]))
