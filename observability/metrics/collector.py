"""Keeps the values of all metrics: gauges of the last iteration, counters of all so far, and how the run stands."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from observability.iteration import IterationStats
from observability.metrics.live import LiveMetrics, RunStatus
from observability.metrics.metric import FAULTS, MetricSpec, Values, clip_label
from observability.metrics.registry import OF_ITERATIONS, OF_STATE
from observability.metrics.training import MetricsObservation


class MetricsCollector(Collector):
    """What the registry asks for at every scrape, in a thread of its own.

    Counters count from the start of the process, also when a run is resumed; Prometheus knows how to go on from there.
    """

    def __init__(self, iterations: int, standing: Callable[[], RunStatus | None]) -> None:
        """iterations: that the run is to do. standing: asks the loop, from any thread; None before there is one."""
        self._iterations, self._standing = iterations, standing
        self._lock = threading.Lock()
        self._values: dict[str, Values] = {metric.name: {} for metric in OF_ITERATIONS}
        self._start: Mapping[str, float | None] = {}
        self._faults: Counter[str] = Counter()
        self._progress = time.time()
        self._own_seconds = 0.0

    def begin(self, speech: Mapping[str, float | None]) -> None:
        """How the replies of the run's first iteration sounded, of a run that goes on."""
        self._start = speech

    def progress(self) -> None:
        """The run came a step further."""
        self._progress = time.time()

    def event(self, kind: str) -> None:
        """Counts an event, if its kind is a fault; any thread may tell one."""
        if kind in FAULTS:
            with self._lock:
                self._faults[kind] += 1

    @contextmanager
    def spending(self, clock: Callable[[], float] = time.perf_counter) -> Iterator[None]:
        """What is done here is done for the metrics. clock: the run waits for it by the clock on the wall; a thread
        beside the run takes `time.thread_time` of the processor."""
        begun = clock()
        try:
            yield
        finally:
            with self._lock:
                self._own_seconds += clock() - begun

    def observe(
        self, iteration: IterationStats, judges: Mapping[str, Mapping[str, float]], left_alone: Mapping[str, int]
    ) -> None:
        """Takes in a finished iteration. judges, left_alone: see `MetricsObservation`."""
        if iteration.iteration == 1:
            self._start = iteration.speech
        seen = MetricsObservation(iteration=iteration, start=self._start, judges=judges, left_alone=left_alone)
        # Replaced in one assignment: a scrape sees one iteration, never half of two.
        self._values = {metric.name: self._after(metric, seen) for metric in OF_ITERATIONS}
        self.progress()

    def _after(self, metric: MetricSpec[MetricsObservation], seen: MetricsObservation) -> Values:
        before = self._values[metric.name] if metric.adds else {}
        values = clip_label(metric.values(seen), before, add_up=metric.kind == "counter")
        return before | {labels: before.get(labels, 0.0) + value for labels, value in values.items()}

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        values = self._values
        for metric in OF_ITERATIONS:
            yield _family(metric, values[metric.name])
        state = LiveMetrics(
            iterations=self._iterations,
            progress=self._progress,
            faults=dict(self._faults),
            own_seconds=self._own_seconds,
            loop=self._standing(),
        )
        for each in OF_STATE:
            yield _family(each, each.values(state))


def _family(metric: MetricSpec, values: Values) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
