"""Metrics read when an iteration has finished."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from observability.iteration import PHASES, IterationStats
from observability.metrics.metric import MetricSpec, Reading


@dataclass(frozen=True, kw_only=True)
class MetricsObservation:
    """A finished iteration, with the values that its metrics are compared to."""

    iteration: IterationStats
    start: Mapping[str, float | None]
    """`IterationStats.speech` of the run's first iteration."""
    judges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """`reward.remote.client.JudgeCounters` by remote reward function, since the start of the run."""
    circuit_open: Mapping[str, int] = field(default_factory=dict)
    """Number of reward servers with an open circuit, by remote reward function."""


Of = MetricSpec[MetricsObservation]


def _gauge(
    name: str, labels: tuple[str, ...], unit: str, meaning: str, read: Callable[[IterationStats], Reading]
) -> Of:
    return MetricSpec(f"duet_{name}", "gauge", labels, unit, meaning, lambda o: read(o.iteration))


def _counter(
    name: str, labels: tuple[str, ...], unit: str, meaning: str, read: Callable[[IterationStats], Reading]
) -> Of:
    """Return a counter; `read` returns the increment of an iteration."""
    return MetricSpec(f"duet_{name}", "counter", labels, unit, meaning, lambda o: read(o.iteration), adds=True)


def _sound(name: str, measure: str, unit: str, meaning: str) -> Of:
    """Return a gauge of one of `observability.speech_health.MEASURES`, now and at the start."""
    return MetricSpec(
        f"duet_{name}", "gauge", ("when",), unit, meaning,
        lambda o: {"now": o.iteration.speech.get(measure), "start": o.start.get(measure)},
    )  # fmt: skip


def _judge(name: str, counter: str, unit: str, meaning: str) -> Of:
    """Return a counter that reads one field of `reward.remote.client.JudgeCounters`."""
    return MetricSpec(
        f"duet_judge_{name}", "counter", ("function",), unit, meaning,
        lambda o: {function: counters.get(counter) for function, counters in o.judges.items()},
    )  # fmt: skip


def _channels(text: float | None, speech: float | None) -> Reading:
    return {"text": text, "speech": speech}


def _rates(i: IterationStats) -> Reading:
    seconds = i.seconds["total"]
    return _channels(i.tokens_text / seconds, i.tokens_speech / seconds) if seconds > 0 else None


def _phases(i: IterationStats) -> Reading:
    # "total" is left out, so that a sum over the label is correct.
    return {phase: i.seconds.get(phase) for phase in PHASES}


CHANNEL = ("channel",)
TRAINING = (
    _gauge("iteration", (), "", "Number of the last finished iteration.", lambda i: i.iteration),
    _gauge("lambda", (), "ratio", "λ, the weight of the preference loss.", lambda i: i.mix),
    _gauge("lambda_raw", (), "ratio", "λ before smoothing, mean over groups.", lambda i: i.mix_raw),
    _gauge(
        "lambda_overridden", (), "", "1 while λ or its mode is set from outside (duet set-lambda), else 0.",
        lambda i: i.mix_overridden,
    ),
    _gauge(
        "lambda_gate", ("gate",), "", "Gates of λ, mean over groups: quality of the best reply, information in the "
        "spread of scores.", lambda i: {"quality": i.gate_quality, "information": i.gate_information},
    ),
    _gauge(
        "reward", ("function",), "", "Mean reward of the replies, on the scale of the reward function.",
        lambda i: i.scores,
    ),
    _gauge(
        "loss", ("part",), "", "Loss: total = (1 − λ) · anchor + λ · preference.",
        lambda i: {"total": i.loss, "preference": i.loss_preference, "anchor": i.loss_anchor},
    ),
    _gauge(
        "kl_nats", CHANNEL, "nats", "KL divergence from the reference model, k3 estimate per token.",
        lambda i: _channels(i.kl_text, i.kl_speech),
    ),
    _gauge(
        "entropy_nats", CHANNEL, "nats", "Entropy of the sampled distribution, per token.",
        lambda i: _channels(i.entropy_text, i.entropy_speech),
    ),
    _gauge(
        "rollout_train_logprob_diff", CHANNEL, "nats",
        "Maximum difference of a token's log-probability between rollout engine and learner.",
        lambda i: _channels(i.logp_gap_text, i.logp_gap_speech),
    ),
    _gauge(
        "weight_sync_logprob_diff", (), "nats", "Maximum difference on the probe after a weight sync, all workers.",
        lambda i: i.probe_gap,
    ),
    _gauge(
        "clip_fraction", (), "ratio", "Fraction of preference tokens with a clipped ratio or weight.",
        lambda i: i.clip_fraction,
    ),
    _counter("pairs_total", (), "pairs", "Preference pairs trained on.", lambda i: i.pairs),
    _gauge(
        "pair_accuracy_ratio", (), "ratio", "Fraction of pairs in the right order, relative to the reference model.",
        lambda i: i.pair_accuracy,
    ),
    _gauge("gradient_norm", (), "", "Gradient norm before clipping.", lambda i: i.gradient_norm),
    _counter(
        "steps_skipped_total", (), "steps", "Steps skipped because a loss or the gradient was not finite.",
        lambda i: i.steps_skipped,
    ),
    _gauge("learning_rate", (), "", "Learning rate of the step.", lambda i: i.learning_rate),
    _gauge(
        "policy_staleness_steps", (), "steps",
        "Maximum number of optimizer steps between the weights that sampled a token and those it trained.",
        lambda i: i.staleness,
    ),
    _gauge(
        "idle_ratio", ("role",), "ratio", "Fraction of the iteration in which the replicas were idle.",
        lambda i: i.idle,
    ),
    _counter("replies_total", (), "replies", "Replies sampled.", lambda i: i.replies),
    _counter(
        "replies_dropped_total", (), "replies", "Replies without a preference gradient.",
        lambda i: i.replies_dropped,
    ),
    _counter(
        "groups_dropped_total", (), "groups", "Groups without a preference gradient.", lambda i: i.groups_dropped,
    ),
)  # fmt: skip
SPEECH = (
    _sound(
        "asr_wer", "word_error", "ratio",
        "Word error rate of the ASR transcript against the reply's text, mean over complete replies.",
    ),
    _sound("speech_pitch_semitones", "pitch_semitones", "semitones", "Median pitch above 100 Hz, mean over replies."),
    _sound(
        "speech_words_per_second", "words_per_second", "words per second",
        "Words of the text per second from the first sound to the last, mean over replies.",
    ),
    _sound("speech_reply_seconds", "seconds", "seconds", "Duration of a complete reply, mean over replies."),
    _sound(
        "speech_silence_ratio", "silence", "ratio",
        "Fraction of a reply that is 35 dB or more below its loudest part, mean over replies.",
    ),
    _sound(
        "codebook_entropy_nats", "codebook_entropy", "nats",
        "Entropy of the speech code frequencies; its exponential is the effective number of codes.",
    ),
    _counter(
        "replies_truncated_total", (), "replies", "Replies that reached the length limit.",
        lambda i: i.replies_truncated,
    ),
    _counter(
        "replies_malformed_total", (), "replies", "Replies with an invalid token structure.",
        lambda i: i.replies_malformed,
    ),
    _counter(
        "audio_seconds_total", (), "seconds", "Duration of the generated speech.",
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
        "tokens_per_second", CHANNEL, "tokens per second", "Tokens of the last iteration per second of its wall time.",
        _rates,
    ),
    _counter("sync_bytes_total", (), "bytes", "Bytes of weights sent to rollout workers.", lambda i: i.sync_bytes),
    _gauge(
        "sync_bytes_per_second", (), "bytes per second",
        "Throughput of the last weight sync, probe included.", lambda i: i.sync_bytes_per_second,
    ),
    _counter("missing_scores_total", ("reason",), "scores", "Scores that are missing.", lambda i: i.missing),
)  # fmt: skip
JUDGES: tuple[Of, ...] = (
    _judge("requests_total", "calls", "requests", "Requests to a remote reward function, retries included."),
    _judge("retries_total", "retries", "requests", "Retries."),
    _judge("seconds_total", "latency_seconds", "seconds", "Total latency of all requests."),
    _judge("cache_hits_total", "cache_hits", "replies", "Replies scored from the cache."),
    _judge("failures_total", "failures", "replies", "Replies without a score after all retries."),
    _judge("unavailable_total", "unavailable", "replies", "Replies not sent because the circuit was open."),
    _judge("breaker_openings_total", "breaker_openings", "", "Times that the circuit opened on a reward server."),
    MetricSpec(
        "duet_judge_circuit_open", "gauge", ("function",), "servers",
        "Reward servers whose circuit to the judge is open.", lambda o: o.circuit_open,
    ),
    _judge("input_tokens_total", "input_tokens", "tokens", "Input tokens, as reported by the judge."),
    _judge("output_tokens_total", "output_tokens", "tokens", "Output tokens, as reported by the judge."),
    _judge("cost_total", "cost", "its currency", "Cost, as reported by the judge."),
)  # fmt: skip
