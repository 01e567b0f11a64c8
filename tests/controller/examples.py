"""An iteration to show, scorecards and groups, with changes."""

import numpy as np

from observability.iteration import IterationStats
from reward.types import Scorecard
from speech.types import Finish, Prompt, Reply, ReplyGroup


def iteration(number: int = 1, **changes) -> IterationStats:
    fields = {
        "iteration": number,
        "weight_version": number - 1,
        "staleness": 0,
        "mix": 0.2 + 0.01 * number,
        "mix_raw": 0.3,
        "mix_overridden": 0,
        "gate_quality": 0.9,
        "gate_information": 0.4,
        "loss": 0.5,
        "loss_preference": 0.1,
        "loss_anchor": 0.6,
        "kl_text": 0.01,
        "kl_speech": 0.002,
        "entropy_text": 0.7,
        "entropy_speech": 1.9,
        "logp_gap_text": 1e-6,
        "logp_gap_speech": 2e-6,
        "probe_gap": 3e-6,
        "clip_fraction": 0.01,
        "pairs": 3,
        "pair_accuracy": 0.75,
        "pair_margin": 0.2,
        "gradient_norm": 0.8,
        "learning_rate": 3e-4,
        "steps_skipped": 0,
        "scores": {"answer": 2.0 + 0.1 * number, "heard": 4.5, "manner": None, "total": 2.5},
        "missing": {"truncated reply": 2},
        "replies": 64,
        "replies_dropped": 2,
        "groups_dropped": 0,
        "replies_truncated": 2,
        "replies_malformed": 0,
        "tokens_text": 300,
        "tokens_speech": 1500,
        "reply_seconds": 60.0,
        "speech": {
            "seconds": 1.1,
            "pitch_semitones": 11.0,
            "words_per_second": 4.5,
            "silence": 0.1,
            "word_error": None,
            "codebook_entropy": 4.2,
        },
        "seconds": {"rollout": 1.0, "reward": 1.0, "learn": 1.5, "sync": 0.1, "total": 3.6},
        "idle": {"rollout": 0.7, "reward": 0.6, "learner": 0.5},
        "sync_bytes": 7_000_000,
        "sync_bytes_per_second": 140_000_000.0,
        "demonstrations": ["train-00001"],
    }
    return IterationStats(**(fields | changes))


def card(**scores) -> Scorecard:
    return Scorecard(scores=scores, details={"text": "oh ten it is"}, seconds=1.0)


def reply(index: int = 0, ids=(7, 3), channels=(0, 3), **changes) -> Reply:
    fields = {
        "prompt_id": "p",
        "index": index,
        "token_ids": np.array(ids, dtype=np.int32),
        "channels": np.array(channels, dtype=np.int8),
        "logps": np.linspace(-1.0, -0.5, len(ids), dtype=np.float32),
        "weight_version": 4,
        "finish": Finish.STOP,
        "defect": None,
        "worker": "rollout-0",
        "seed": 9,
    }
    return Reply(**(fields | changes))


def group(count: int, prompt: str = "p", **changes) -> ReplyGroup:
    asked = Prompt(id=prompt, token_ids=np.array([1, 2], dtype=np.int32), text="", facts={})
    return ReplyGroup(prompt=asked, replies=[reply(index, prompt_id=prompt, **changes) for index in range(count)])
