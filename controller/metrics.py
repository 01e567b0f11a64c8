"""What a Prometheus server sees of a run: the last iteration as gauges, everything done so far as counters.

`METRICS` is the one list of them, for the endpoint, the dashboards and the documentation. A number that could not be
measured has no sample: a scrape never shows a 0 that nobody measured. Counters count from the start of the process,
also when a run is resumed; Prometheus knows how to go on from there.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from controller.iteration import PHASES, Iteration
from speech.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the metrics are read from."""

    iteration: Iteration
    versions: Mapping[str, int]
    """Weight version by rollout worker, the workers there are now."""
    time: float
    """Seconds since the epoch."""


Reading = Mapping[str, float | None] | float | None
"""A value by label, or one value for a metric without a label; None where there is no number."""


@dataclass(frozen=True)
class Metric:
    """A metric: how it is called, what it means, where it comes from."""

    name: str
    kind: Literal["gauge", "counter"]
    label: str
    """The one label; empty for none. Its values are few: raters, channels, phases, workers, reasons."""
    unit: str
    meaning: str
    read: Callable[[Observation], Reading]
    """Of a gauge the value, of a counter what the iteration adds."""


def _channels(text: float | None, speech: float | None) -> dict[str, float | None]:
    return {"text": text, "speech": speech}


def _rates(i: Iteration) -> Reading:
    seconds = i.seconds["total"]
    return _channels(i.tokens_text / seconds, i.tokens_speech / seconds) if seconds > 0 else None


def _phases(i: Iteration) -> dict[str, float | None]:
    # Without "total", so that a sum over the label is right.
    return {phase: i.seconds.get(phase) for phase in PHASES}


METRICS = (
    Metric(
        "duet_iteration", "gauge", "", "", "Number of the last finished iteration.", lambda o: o.iteration.iteration,
    ),
    Metric(
        "duet_last_progress_timestamp_seconds", "gauge", "", "seconds",
        "When the last iteration finished, since the epoch.", lambda o: o.time,
    ),
    Metric("duet_mix_ratio", "gauge", "", "ratio", "λ, the weight of the preference loss.", lambda o: o.iteration.mix),
    Metric(
        "duet_mix_raw_ratio", "gauge", "", "ratio", "λ before smoothing, mean over groups.",
        lambda o: o.iteration.mix_raw,
    ),
    Metric(
        "duet_mix_overridden", "gauge", "", "", "1 while λ or its mode is set from outside (duet mix), else 0.",
        lambda o: o.iteration.mix_overridden,
    ),
    Metric(
        "duet_mix_gate", "gauge", "gate", "",
        "The two gates of λ, means over groups: quality of the best reply, information in the spread of scores.",
        lambda o: {"quality": o.iteration.gate_quality, "information": o.iteration.gate_information},
    ),
    Metric(
        "duet_score", "gauge", "rater", "", "Mean score of the replies, on the rater's scale; total is what trains.",
        lambda o: o.iteration.scores,
    ),
    Metric(
        "duet_loss", "gauge", "part", "", "Loss: total = (1 − λ) · anchor + λ · preference.",
        lambda o: {
            "total": o.iteration.loss, "preference": o.iteration.loss_preference, "anchor": o.iteration.loss_anchor,
        },
    ),
    Metric(
        "duet_kl_nats", "gauge", "channel", "nats", "Divergence from the start model, k3 estimate per token.",
        lambda o: _channels(o.iteration.kl_text, o.iteration.kl_speech),
    ),
    Metric(
        "duet_entropy_nats", "gauge", "channel", "nats", "Entropy of the sampled distribution, per token.",
        lambda o: _channels(o.iteration.entropy_text, o.iteration.entropy_speech),
    ),
    Metric(
        "duet_logp_gap_nats", "gauge", "channel", "nats",
        "Largest difference of a token's log-probability between sampler and learner.",
        lambda o: _channels(o.iteration.logp_gap_text, o.iteration.logp_gap_speech),
    ),
    Metric(
        "duet_probe_gap_nats", "gauge", "", "nats",
        "Largest such difference on the probe after the weight sync, over all workers.",
        lambda o: o.iteration.probe_gap,
    ),
    Metric(
        "duet_clipped_tokens_ratio", "gauge", "", "ratio", "Share of preference tokens with a clipped ratio or weight.",
        lambda o: o.iteration.clip_fraction,
    ),
    Metric(
        "duet_pairs_total", "counter", "", "pairs", "Preference pairs trained on.", lambda o: o.iteration.pairs,
    ),
    Metric(
        "duet_pair_accuracy_ratio", "gauge", "", "ratio",
        "Share of pairs in the right order, relative to the start model.", lambda o: o.iteration.pair_accuracy,
    ),
    Metric(
        "duet_gradient_norm", "gauge", "", "", "Norm of the gradient, before clipping.",
        lambda o: o.iteration.gradient_norm,
    ),
    Metric(
        "duet_steps_skipped_total", "counter", "", "steps", "Steps not taken: a loss or the gradient was not finite.",
        lambda o: o.iteration.steps_skipped,
    ),
    Metric("duet_learning_rate", "gauge", "", "", "Learning rate of the step.", lambda o: o.iteration.learning_rate),
    Metric(
        "duet_weight_version", "gauge", "worker", "", "Version of the weights that a rollout worker holds.",
        lambda o: o.versions,
    ),
    Metric(
        "duet_tokens_total", "counter", "channel", "tokens", "Tokens sampled.",
        lambda o: _channels(o.iteration.tokens_text, o.iteration.tokens_speech),
    ),
    Metric(
        "duet_tokens_per_second", "gauge", "channel", "tokens per second",
        "Tokens of the last iteration over its whole wall time.", lambda o: _rates(o.iteration),
    ),
    Metric(
        "duet_audio_seconds_total", "counter", "", "seconds", "Speech produced, as a listener would hear it.",
        lambda o: o.iteration.reply_seconds,
    ),
    Metric("duet_replies_total", "counter", "", "replies", "Replies sampled.", lambda o: o.iteration.replies),
    Metric(
        "duet_replies_dropped_total", "counter", "", "replies", "Replies that gave no preference gradient.",
        lambda o: o.iteration.replies_dropped,
    ),
    Metric(
        "duet_replies_truncated_total", "counter", "", "replies", "Replies that reached the length limit.",
        lambda o: o.iteration.replies_truncated,
    ),
    Metric(
        "duet_replies_malformed_total", "counter", "", "replies", "Replies whose structure is broken.",
        lambda o: o.iteration.replies_malformed,
    ),
    Metric(
        "duet_groups_dropped_total", "counter", "", "groups", "Groups that gave no preference gradient.",
        lambda o: o.iteration.groups_dropped,
    ),
    Metric(
        "duet_scores_missing_total", "counter", "reason", "scores", "Scores that could not be given.",
        lambda o: o.iteration.missing,
    ),
    Metric(
        "duet_phase_last_seconds", "gauge", "phase", "seconds", "Wall time of a phase in the last iteration.",
        lambda o: _phases(o.iteration),
    ),
    Metric(
        "duet_phase_seconds_total", "counter", "phase", "seconds", "Wall time spent in a phase.",
        lambda o: _phases(o.iteration),
    ),
    Metric(
        "duet_iteration_last_seconds", "gauge", "", "seconds", "Wall time of the last iteration.",
        lambda o: o.iteration.seconds["total"],
    ),
    Metric(
        "duet_sync_bytes_total", "counter", "", "bytes", "Weights sent to rollout workers.",
        lambda o: o.iteration.sync_bytes,
    ),
)  # fmt: skip


class Metrics(Collector):
    """Serves `METRICS` over HTTP for a Prometheus server to scrape, from its own thread."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """port: 0 takes any free port; `port` tells which after `start`."""
        self.host = host
        self.port = port
        self._values: dict[str, dict[str, float]] = {metric.name: {} for metric in METRICS}
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to serve. Raises InputError when the address cannot be had."""
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(self.port, self.host, registry)
        except socket.gaierror as error:
            raise InputError(f"metrics.host: no address is known for {self.host!r}: {error.strerror}") from error
        except OSError as error:
            raise InputError(self._refusal(error)) from error
        self.port = self._server.server_port

    def observe(self, iteration: Iteration, versions: Mapping[str, int]) -> None:
        """Takes in a finished iteration. versions: weight version by rollout worker, of all that there are now."""
        seen = Observation(iteration=iteration, versions=versions, time=time.time())
        values = {}
        for metric in METRICS:
            reading = metric.read(seen)
            by_label = reading if isinstance(reading, Mapping) else {"": reading}
            present = {label: float(value) for label, value in by_label.items() if value is not None}
            if metric.kind == "counter":
                before = self._values[metric.name]
                present = before | {label: before.get(label, 0.0) + value for label, value in present.items()}
            values[metric.name] = present
        # Replaced in one assignment: a scrape sees one iteration, never half of two.
        self._values = values

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """What the registry asks for at every scrape."""
        values = self._values
        for metric in METRICS:
            family = (CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily)(
                metric.name, metric.meaning, labels=[metric.label] if metric.label else []
            )
            for label, value in values[metric.name].items():
                family.add_metric([label] if metric.label else [], value)
            yield family

    def close(self) -> None:
        """Stops serving and frees the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def _refusal(self, error: OSError) -> str:
        if error.errno == errno.EADDRINUSE:
            return (
                f"metrics.port: port {self.port} on {self.host} is in use; set metrics.port to another, "
                "or to 0 for any free one"
            )
        if error.errno == errno.EADDRNOTAVAIL:
            return f"metrics.host: {self.host} is no address of this machine; use 127.0.0.1, or 0.0.0.0 for all"
        return f"metrics.port: cannot listen on port {self.port} of {self.host}: {error.strerror}"
