"""Statistics of one iteration, for the records, the metrics and the display; and progress snapshots for the driver."""

from dataclasses import asdict, dataclass, field

PHASES = ("rollout", "reward", "learn", "sync")
"""The timed phases of an iteration, in order."""


@dataclass(frozen=True, kw_only=True)
class IterationStats:
    """One row of `iterations.parquet`. A value that was not measured is None (null in Parquet), never 0."""

    iteration: int
    """Number of the iteration, from 1."""
    weight_version: int
    """Version of the weights that sampled the replies. The step, taken or skipped, creates version + 1."""
    staleness: int | None
    """Maximum number of optimizer steps between the weights that sampled a token and those it trained; None if nothing
    was sampled."""
    mix: float
    """λ used for this iteration's step (column `lambda`)."""
    mix_raw: float | None
    """λ before smoothing, mean over groups (column `lambda_raw`)."""
    mix_overridden: int
    """1 while λ or its schedule is set from outside (`duet set-lambda`)."""
    gate_quality: float | None
    """Mean over groups of g = sigmoid(k (max R − threshold))."""
    gate_information: float | None
    """Mean over groups of v = clip(Var R / largest variance, 0, 1)."""
    loss: float | None
    """(1 − λ) · loss_anchor + λ · loss_preference. None if not finite, as for its parts."""
    loss_preference: float | None
    loss_anchor: float | None
    kl_text: float | None
    """k3 estimate against the reference model, nats per token."""
    kl_speech: float | None
    entropy_text: float | None
    """Entropy of the sampling distribution, nats per token."""
    entropy_speech: float | None
    logp_gap_text: float | None
    """Maximum |log-probability of the rollout engine − of the learner| over the channel's tokens. None if older weights
    sampled some of them, because these differ by the steps in between."""
    logp_gap_speech: float | None
    probe_gap: float
    """Maximum of the same difference on the probe after the weight sync, over all workers."""
    clip_fraction: float | None
    """Fraction of preference tokens with a clipped ratio or importance weight."""
    pairs: int
    """Number of pairs of the step (DPO)."""
    pair_accuracy: float | None
    """Fraction of pairs that the policy orders correctly, relative to the reference model."""
    pair_margin: float | None
    """Mean margin of the pairs, nats."""
    gradient_norm: float | None
    """Norm before clipping; None if the step was skipped."""
    learning_rate: float
    steps_skipped: int
    """1 if a loss or the gradient was not finite and the weights did not change, else 0."""
    scores: dict[str, float | None]
    """Mean by reward function and by combined score, `total` last (columns `score_NAME`)."""
    missing: dict[str, int]
    """Missing scores by reason."""
    replies: int
    replies_dropped: int
    """Replies without a preference gradient: malformed, truncated, unscored, without a token to train, in a group with
    fewer than two scores, or in no pair."""
    groups_dropped: int
    replies_truncated: int
    replies_malformed: int
    tokens_text: int
    tokens_speech: int
    reply_seconds: float
    """Duration of the generated audio, seconds."""
    speech: dict[str, float | None]
    """Speech measures, means over complete replies (columns `speech_NAME`); see `observability.speech_health`."""
    seconds: dict[str, float]
    """Wall time by phase in seconds (columns `seconds_PHASE`), `total` included."""
    idle: dict[str, float]
    """Fraction of the iteration in which the actors of a role were idle, in [0, 1] (columns `idle_ROLE`)."""
    sync_bytes: int
    """Bytes of weights sent to each worker."""
    sync_bytes_per_second: float
    """`sync_bytes` over the whole sync phase: sent, loaded by every worker and checked by the probe."""
    demonstrations: list[str]
    """Prompt ids of the demonstrations that the anchor trained on."""

    def row(self) -> dict[str, object]:
        """Return flat columns with the names of the file contract; `missing` becomes one count."""
        flat = asdict(self)
        names = ("scores", "missing", "seconds", "speech", "idle")
        scores, missing, seconds, speech, idle = (flat.pop(name) for name in names)
        flat["lambda"], flat["lambda_raw"] = flat.pop("mix"), flat.pop("mix_raw")
        flat |= {f"score_{name}": value for name, value in scores.items()}
        flat |= {f"speech_{name}": value for name, value in speech.items()}
        flat |= {f"seconds_{phase}": value for phase, value in seconds.items()}
        flat |= {f"idle_{role}": share for role, share in idle.items()}
        flat["scores_missing"] = sum(missing.values())
        return flat


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Snapshot of a run, sent from the controller actor to the display. Plain data only."""

    stage: str
    """Current stage: "starting rollout workers", "evaluating before", "iteration", "done"."""
    iterations_total: int
    iterations: list[IterationStats] = field(default_factory=list)
    """Finished iterations that the caller has not seen yet."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user since the last call, oldest first."""
    phase: str = ""
    """Phase of the current iteration."""
    finished: bool = False
