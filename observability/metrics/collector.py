"""Collect the values of all metrics: gauges of the last iteration, counters, and the current state of the run."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from observability.iteration import IterationStats
from observability.metrics.live import LiveMetrics, RunStatus
from observability.metrics.metric import ERROR_EVENTS, MetricSpec, Values, clip_label
from observability.metrics.registry import ITERATION_METRICS, LIVE_METRICS
from observability.metrics.training import MetricsObservation


class MetricsCollector(Collector):
    """Collector of a Prometheus registry, called from the server's thread at every scrape.

    Counters start at 0 with the process, also for a resumed run; Prometheus handles the reset.
    """

    def __init__(self, iterations: int, status: Callable[[], RunStatus | None]) -> None:
        """Create the collector.

        Args:
            iterations: target number of iterations.
            status: returns the state of the loop, from any thread; None before the loop starts.
        """
        self._iterations, self._status = iterations, status
        self._lock = threading.Lock()
        self._values: dict[str, Values] = {metric.name: {} for metric in ITERATION_METRICS}
        self._start: Mapping[str, float | None] = {}
        self._errors: Counter[str] = Counter()
        self._progress = time.time()
        self._own_seconds = 0.0

    def begin(self, speech: Mapping[str, float | None]) -> None:
        """Set the speech measures of the first iteration, for a resumed run."""
        self._start = speech

    def progress(self) -> None:
        """Record progress of the run."""
        self._progress = time.time()

    def event(self, kind: str) -> None:
        """Count an event if it is an error. Thread-safe."""
        if kind in ERROR_EVENTS:
            with self._lock:
                self._errors[kind] += 1

    @contextmanager
    def spending(self, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
        """Add the time spent in the block to the cost of the metrics.

        Args:
            clock: wall clock if the run waits for the block; `time.thread_time` in a thread beside the run.
        """
        start = clock()
        try:
            yield
        finally:
            with self._lock:
                self._own_seconds += clock() - start

    def observe(
        self, iteration: IterationStats, judges: Mapping[str, Mapping[str, float]], circuit_open: Mapping[str, int]
    ) -> None:
        """Update all metrics with a finished iteration. See `MetricsObservation` for judges and circuit_open."""
        if iteration.iteration == 1:
            self._start = iteration.speech
        seen = MetricsObservation(iteration=iteration, start=self._start, judges=judges, circuit_open=circuit_open)
        # One assignment, so that a scrape never sees values of two iterations.
        self._values = {metric.name: self._after(metric, seen) for metric in ITERATION_METRICS}
        self.progress()

    def _after(self, metric: MetricSpec[MetricsObservation], seen: MetricsObservation) -> Values:
        before = self._values[metric.name] if metric.adds else {}
        values = clip_label(metric.values(seen), before, add_up=metric.kind == "counter")
        return before | {labels: before.get(labels, 0.0) + value for labels, value in values.items()}

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        values = self._values
        for metric in ITERATION_METRICS:
            yield _family(metric, values[metric.name])
        state = LiveMetrics(
            iterations=self._iterations,
            progress=self._progress,
            errors=dict(self._errors),
            own_seconds=self._own_seconds,
            loop=self._status(),
        )
        for each in LIVE_METRICS:
            yield _family(each, each.values(state))


def _family(metric: MetricSpec, values: Values) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
