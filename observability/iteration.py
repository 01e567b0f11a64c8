"""What one iteration did: the row that the records, the metrics and the display all show.

What the controller tells the watching driver: a snapshot, taken at any moment.
"""

from dataclasses import asdict, dataclass, field

PHASES = ("rollout", "reward", "learn", "sync")
"""The timed phases of an iteration, in order."""


@dataclass(frozen=True, kw_only=True)
class IterationStats:
    """One row of `iterations.parquet`. A number that could not be measured is None (null in Parquet), never 0."""

    iteration: int
    """1 for the first."""
    weight_version: int
    """Version of the weights that sampled this iteration's replies; the step, taken or skipped, made version + 1."""
    staleness: int | None
    """Steps between the weights that drew a token and those that it trained, at most; None where none was drawn
    here."""
    mix: float
    """λ used for this iteration's step (column `lambda`)."""
    mix_raw: float | None
    """λ before smoothing, mean over groups (column `lambda_raw`)."""
    mix_overridden: int
    """1 while λ, or its mode, is set from outside (`duet set-lambda`)."""
    gate_quality: float | None
    """Mean over groups of g = sigmoid(k (max R − threshold))."""
    gate_information: float | None
    """Mean over groups of v = clip(Var R / largest variance, 0, 1)."""
    loss: float | None
    """(1 − λ) · loss_anchor + λ · loss_preference; None, as its parts, where it is not finite."""
    loss_preference: float | None
    loss_anchor: float | None
    kl_text: float | None
    """k3 estimate against the start model, nats per token."""
    kl_speech: float | None
    entropy_text: float | None
    """Of the sampled distribution, nats per token."""
    entropy_speech: float | None
    logp_gap_text: float | None
    """Largest |log-probability of sampler − of learner| over the channel's tokens; None where older weights drew some
    of them: theirs differ by what was learned since."""
    logp_gap_speech: float | None
    probe_gap: float
    """Largest such difference on the probe after the weight sync, over all workers."""
    clip_fraction: float | None
    """Share of preference tokens where a bound was in force: the clipped ratio, or the largest importance weight."""
    pairs: int
    """Pairs of the step, with objective dpo."""
    pair_accuracy: float | None
    """Share of pairs that the policy, relative to the start model, has in the right order."""
    pair_margin: float | None
    """Mean by how much, nats."""
    gradient_norm: float | None
    """Before clipping; None when the step was skipped."""
    learning_rate: float
    steps_skipped: int
    """1 when a loss or the gradient was not finite and the weights stayed as they were, else 0."""
    scores: dict[str, float | None]
    """Mean by rater and by combined score, `total` the last (columns `score_NAME`)."""
    missing: dict[str, int]
    """Missing scores by reason."""
    replies: int
    replies_dropped: int
    """Replies that gave no preference gradient: malformed, truncated, unscored, without a token to train, in a group
    with fewer than two scores, or in no pair."""
    groups_dropped: int
    replies_truncated: int
    replies_malformed: int
    tokens_text: int
    tokens_speech: int
    reply_seconds: float
    """Audio produced, seconds."""
    speech: dict[str, float | None]
    """How the replies sound, means over those that are whole (columns `speech_NAME`): see
    `observability.speech_health`."""
    seconds: dict[str, float]
    """Wall seconds by phase (columns `seconds_PHASE`), `total` included."""
    idle: dict[str, float]
    """Share of the iteration in which members of a role had nothing to do, in [0, 1] (columns `idle_ROLE`)."""
    sync_bytes: int
    """Of the weights that went to the workers; each took as many."""
    sync_bytes_per_second: float
    """Of `sync_bytes`, over all of the phase sync: sent, taken by every worker, and checked by the probe. Times 1e-9,
    GB/s."""
    demonstrations: list[str]
    """Prompts of the demonstrations that the anchor trained on."""

    def row(self) -> dict[str, object]:
        """Flat columns under the names of the file contract; `missing` becomes one count."""
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
    """Where a run stands. Sent from the controller actor to the display; plain data only."""

    stage: str
    """What is being done, in words: "starting rollout workers", "evaluating before", "iteration", "done"."""
    iterations_total: int
    iterations: list[IterationStats] = field(default_factory=list)
    """Finished iterations newer than the ones that the caller has seen."""
    notes: list[str] = field(default_factory=list)
    """Lines for the user since the last call, oldest first."""
    phase: str = ""
    """Phase of the running iteration."""
    finished: bool = False
