"""The metrics that are read when an iteration has finished."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from observability.iteration import PHASES, IterationStats
from observability.metrics.metric import MetricSpec, Reading


@dataclass(frozen=True, kw_only=True)
class MetricsObservation:
    """A finished iteration, and what its metrics are set beside."""

    iteration: IterationStats
    start: Mapping[str, float | None]
    """`IterationStats.speech` of the run's first iteration."""
    judges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`reward.remote.client.JudgeCounters` by remote rater, since the start of the run."""
    left_alone: Mapping[str, int] = field(default_factory=dict)
    """Servers that do not ask a remote rater now, by rater."""


Of = MetricSpec[MetricsObservation]


def _gauge(
    name: str, labels: tuple[str, ...], unit: str, meaning: str, read: Callable[[IterationStats], Reading]
) -> Of:
    return MetricSpec(f"duet_{name}", "gauge", labels, unit, meaning, lambda o: read(o.iteration))


def _counter(
    name: str, labels: tuple[str, ...], unit: str, meaning: str, read: Callable[[IterationStats], Reading]
) -> Of:
    """read: what the iteration adds."""
    return MetricSpec(f"duet_{name}", "counter", labels, unit, meaning, lambda o: read(o.iteration), adds=True)


def _sound(name: str, measure: str, unit: str, meaning: str) -> Of:
    """measure: of `observability.speech_health.MEASURES`."""
    return MetricSpec(
        f"duet_{name}", "gauge", ("when",), unit, meaning,
        lambda o: {"now": o.iteration.speech.get(measure), "start": o.start.get(measure)},
    )  # fmt: skip


def _judge(name: str, counter: str, unit: str, meaning: str) -> Of:
    """counter: of `reward.remote.client.JudgeCounters`."""
    return MetricSpec(
        f"duet_judge_{name}", "counter", ("rater",), unit, meaning,
        lambda o: {rater: counted.get(counter) for rater, counted in o.judges.items()},
    )  # fmt: skip


def _channels(text: float | None, speech: float | None) -> Reading:
    return {"text": text, "speech": speech}


def _rates(i: IterationStats) -> Reading:
    seconds = i.seconds["total"]
    return _channels(i.tokens_text / seconds, i.tokens_speech / seconds) if seconds > 0 else None


def _phases(i: IterationStats) -> Reading:
    # Without "total", so that a sum over the label is right.
    return {phase: i.seconds.get(phase) for phase in PHASES}


CHANNEL = ("channel",)
TRAINING = (
    _gauge("iteration", (), "", "Number of the last finished iteration.", lambda i: i.iteration),
    _gauge("mix_ratio", (), "ratio", "λ, the weight of the preference loss.", lambda i: i.mix),
    _gauge("mix_raw_ratio", (), "ratio", "λ before smoothing, mean over groups.", lambda i: i.mix_raw),
    _gauge(
        "mix_overridden", (), "", "1 while λ or its mode is set from outside (duet set-lambda), else 0.",
        lambda i: i.mix_overridden,
    ),
    _gauge(
        "mix_gate", ("gate",), "", "The two gates of λ, means over groups: quality of the best reply, information in "
        "the spread of scores.", lambda i: {"quality": i.gate_quality, "information": i.gate_information},
    ),
    _gauge("score", ("rater",), "", "Mean score of the replies, on the rater's scale.", lambda i: i.scores),
    _gauge(
        "loss", ("part",), "", "Loss: total = (1 − λ) · anchor + λ · preference.",
        lambda i: {"total": i.loss, "preference": i.loss_preference, "anchor": i.loss_anchor},
    ),
    _gauge(
        "kl_nats", CHANNEL, "nats", "Divergence from the start model, k3 estimate per token.",
        lambda i: _channels(i.kl_text, i.kl_speech),
    ),
    _gauge(
        "entropy_nats", CHANNEL, "nats", "Entropy of the sampled distribution, per token.",
        lambda i: _channels(i.entropy_text, i.entropy_speech),
    ),
    _gauge(
        "logp_gap_nats", CHANNEL, "nats",
        "Largest difference of a token's log-probability between sampler and learner.",
        lambda i: _channels(i.logp_gap_text, i.logp_gap_speech),
    ),
    _gauge(
        "probe_gap_nats", (), "nats", "Largest such difference on the probe after the weight sync, over all workers.",
        lambda i: i.probe_gap,
    ),
    _gauge(
        "clipped_tokens_ratio", (), "ratio", "Share of preference tokens with a clipped ratio or weight.",
        lambda i: i.clip_fraction,
    ),
    _counter("pairs_total", (), "pairs", "Preference pairs trained on.", lambda i: i.pairs),
    _gauge(
        "pair_accuracy_ratio", (), "ratio", "Share of pairs in the right order, relative to the start model.",
        lambda i: i.pair_accuracy,
    ),
    _gauge("gradient_norm", (), "", "Norm of the gradient, before clipping.", lambda i: i.gradient_norm),
    _counter(
        "steps_skipped_total", (), "steps", "Steps not taken: a loss or the gradient was not finite.",
        lambda i: i.steps_skipped,
    ),
    _gauge("learning_rate", (), "", "Learning rate of the step.", lambda i: i.learning_rate),
    _gauge(
        "staleness_versions", (), "versions",
        "Steps between the weights that drew a token and those that it trained, at most.", lambda i: i.staleness,
    ),
    _gauge(
        "idle_ratio", ("role",), "ratio", "Share of the iteration in which members had nothing to do.",
        lambda i: i.idle,
    ),
    _counter("replies_total", (), "replies", "Replies sampled.", lambda i: i.replies),
    _counter(
        "replies_dropped_total", (), "replies", "Replies that gave no preference gradient.",
        lambda i: i.replies_dropped,
    ),
    _counter(
        "groups_dropped_total", (), "groups", "Groups that gave no preference gradient.", lambda i: i.groups_dropped,
    ),
)  # fmt: skip
SPEECH = (
    _sound(
        "heard_word_error_ratio", "word_error", "ratio",
        "Words between what a rater heard and what the text says, over those of the text; mean over whole replies.",
    ),
    _sound("speech_pitch_semitones", "pitch_semitones", "semitones", "Median pitch above 100 Hz, mean over replies."),
    _sound(
        "speech_words_per_second", "words_per_second", "words per second",
        "Words of the text over the time from the first sound to the last, mean over replies.",
    ),
    _sound("speech_reply_seconds", "seconds", "seconds", "Length of a whole reply, mean over replies."),
    _sound(
        "speech_silence_ratio", "silence", "ratio",
        "Share of a reply that is 35 dB or more below its loudest, mean over replies.",
    ),
    _sound(
        "codebook_entropy_nats", "codebook_entropy", "nats",
        "Entropy of the speech codes' frequencies; its exponential is how many codes are in use.",
    ),
    _counter(
        "replies_truncated_total", (), "replies", "Replies that reached the length limit.",
        lambda i: i.replies_truncated,
    ),
    _counter(
        "replies_malformed_total", (), "replies", "Replies whose structure is broken.", lambda i: i.replies_malformed,
    ),
    _counter(
        "audio_seconds_total", (), "seconds", "Speech produced, as a listener would hear it.",
        lambda i: i.reply_seconds,
    ),
)  # fmt: skip
WORK = (
    _gauge("phase_last_seconds", ("phase",), "seconds", "Wall time of a phase in the last iteration.", _phases),
    _counter("phase_seconds_total", ("phase",), "seconds", "Wall time spent in a phase.", _phases),
    _gauge(
        "iteration_last_seconds", (), "seconds", "Wall time of the last iteration.", lambda i: i.seconds["total"],
    ),
    _counter(
        "tokens_total", CHANNEL, "tokens", "Tokens sampled.", lambda i: _channels(i.tokens_text, i.tokens_speech),
    ),
    _gauge(
        "tokens_per_second", CHANNEL, "tokens per second", "Tokens of the last iteration over its whole wall time.",
        _rates,
    ),
    _counter("sync_bytes_total", (), "bytes", "Weights sent to rollout workers.", lambda i: i.sync_bytes),
    _gauge(
        "sync_bytes_per_second", (), "bytes per second",
        "Weights of the last sync over its time, probe included.", lambda i: i.sync_bytes_per_second,
    ),
    _counter("scores_missing_total", ("reason",), "scores", "Scores that could not be given.", lambda i: i.missing),
)  # fmt: skip
JUDGES: tuple[Of, ...] = (
    _judge("requests_total", "calls", "requests", "Attempts at asking a remote rater, retries included."),
    _judge("retries_total", "retries", "requests", "Attempts after the first."),
    _judge("seconds_total", "latency_seconds", "seconds", "Time from question to answer, over all attempts."),
    _judge("cache_hits_total", "cache_hits", "replies", "Replies whose score was known."),
    _judge("failures_total", "failures", "replies", "Replies that got no score."),
    _judge("unavailable_total", "unavailable", "replies", "Replies not asked about, the rater being left alone."),
    _judge("breaker_openings_total", "breaker_openings", "", "Times that a server began to leave the rater alone."),
    MetricSpec(
        "duet_judge_left_alone_servers", "gauge", ("rater",), "servers",
        "Reward servers that leave the rater alone now: their breaker is open.", lambda o: o.left_alone,
    ),
    _judge("input_tokens_total", "input_tokens", "tokens", "Tokens read, as the rater tells."),
    _judge("output_tokens_total", "output_tokens", "tokens", "Tokens written, as the rater tells."),
    _judge("cost_total", "cost", "its currency", "What the rater charged, as it tells."),
)  # fmt: skip
