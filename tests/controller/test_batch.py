"""The record of a step: what is missing, dropped or damaged is counted, and what was used is named."""

import pytest

from configs.routes import ScoreRoute
from controller.batch import GRPOBatchBuilder, describe_iteration
from controller.mix_ratio import MixRatioStats
from learner.group import StepResult
from learner.step_metrics import StepMetrics
from reward.scoring import ScoringConfig, score_groups
from reward.types import MissingScore
from rollout.worker import SyncReport
from speech.types import Demonstration, Finish
from tests.controller.examples import card, group, reply

ONE = ScoringConfig(total={"a": 1.0})
FAILED = MissingScore("a raised TimeoutError", fault="rater")
CUT, BROKEN = MissingScore("truncated reply"), MissingScore("malformed reply")


def described(*judged_groups, uses, demonstrations=(), version=6, **changes):
    mix = MixRatioStats(
        mix=0.2, raw=None, gate_quality=None, gate_information=None, overridden=False, shares=[1.0] * len(judged_groups)
    )
    learned = StepResult(**({"metrics": StepMetrics(), "gradient_norm": 1.0, "learning_rate": 1e-3} | changes))
    syncs = {"rollout-0": SyncReport(version=version + 1, logprob_diff=1e-6, seconds=0.1)}
    seconds, idle = {"learn": 1.0, "sync": 0.5}, {"learner": 0.5}
    return describe_iteration(
        7, version, mix, judged_groups, uses, list(demonstrations), learned, syncs, 6000, seconds, idle
    )


def test_what_is_missing_is_counted_by_reason_and_what_gives_no_gradient_is_dropped():
    """Method §7, rule 1: all of it is counted, and the means are over what there is."""
    groups = [group(3), group(2)]
    cards = [[card(a=1.0), card(a=FAILED), card(a=5.0)], [card(a=FAILED), card(a=4.0)]]
    judged = [score_groups(g, c, ONE, [ScoreRoute()]) for g, c in zip(groups, cards, strict=True)]
    routes = GRPOBatchBuilder(
        routes=(ScoreRoute(),), boundary="speech", average="seq-mean-token-mean", constant=1, structure=None
    )
    found = described(*judged, uses=routes.batch(groups, judged, {}, [1.0, 1.0]).uses)
    assert found.missing == {"a raised TimeoutError": 2}
    assert found.scores == {"a": pytest.approx(10 / 3), "total": pytest.approx(10 / 3)}
    assert (found.replies, found.replies_dropped, found.groups_dropped) == (5, 3, 1)


def test_truncated_and_malformed_replies_are_counted():
    """Method §7, rule 5."""
    damaged = group(3)
    damaged.replies[0] = reply(0, finish=Finish.LENGTH, defect="the reply has no end")
    damaged.replies[1] = reply(1, defect="token 1 (id 3) is STOP, expected BEGIN")
    judged = score_groups(damaged, [card(a=CUT), card(a=BROKEN), card(a=4.0)], ONE, [ScoreRoute()])
    found = described(judged, uses=[[None] * 3])
    assert (found.replies_truncated, found.replies_malformed) == (1, 1)
    assert found.missing == {"truncated reply": 1, "malformed reply": 1}


def test_an_iteration_names_its_weights_and_its_demonstrations():
    """Method §7, rule 9."""
    ids = reply().token_ids
    used = [Demonstration(prompt_id=name, prompt_ids=ids, reply_ids=ids, text="") for name in ("train-7", "train-2")]
    found = described(
        score_groups(group(2), [card(a=1.0), card(a=2.0)], ONE, []), uses=[[None] * 2], demonstrations=used
    )
    assert (found.weight_version, found.demonstrations) == (6, ["train-7", "train-2"])
    assert (found.sync_bytes, found.sync_bytes_per_second) == (6000, 12000.0)


def test_a_skipped_step_is_counted_and_what_it_did_not_measure_is_none():
    """Never a number that is none: not in the records, and not on a dashboard."""
    tally = StepMetrics()
    tally.add("loss_preference", float("nan"))
    tally.add("loss_anchor", 1.5)
    tally.add("kl_text", float("inf"), 3.0)
    tally.update_max("logp_gap_text", float("nan"))
    judged = score_groups(group(2), [card(a=1.0), card(a=2.0)], ONE, [])
    skipped = {"metrics": tally, "gradient_norm": None, "skipped": True, "not_finite": "loss of learner-1"}
    found = described(judged, uses=[["sample"] * 2], **skipped)
    assert found.steps_skipped == 1
    assert (found.loss, found.loss_preference, found.kl_text, found.logp_gap_text) == (None, None, None, None)
    assert (found.loss_anchor, found.gradient_norm) == (1.5, None)
    assert described(judged, uses=[["sample"] * 2]).steps_skipped == 0
