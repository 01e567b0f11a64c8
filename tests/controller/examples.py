"""An iteration to show, with changes."""

from controller.iteration import Iteration


def iteration(number: int = 1, **changes) -> Iteration:
    fields = {
        "iteration": number,
        "weight_version": number - 1,
        "mix": 0.2 + 0.01 * number,
        "mix_raw": 0.3,
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
        "gradient_norm": 0.8,
        "learning_rate": 3e-4,
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
        "seconds": {"rollout": 1.0, "reward": 1.0, "learn": 1.5, "sync": 0.1, "total": 3.6},
        "sync_bytes": 7_000_000,
    }
    return Iteration(**(fields | changes))
