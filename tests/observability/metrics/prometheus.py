"""A real Prometheus on free ports, with the configuration of deploy/prometheus, and a run for it to scrape."""

import contextlib
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.commands import Job
from tests.reward.judges import Process

SHIPPED = "15s"
"""Between scrapes, and evaluations of the rules, in deploy/prometheus."""
OFTEN = "1s"
"""The same where a run of a minute is to have many."""
READY_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Prometheus:
    """Scrapes what the controller at `port` says is there. A context manager."""

    def __init__(self, root: Path, directory: Path, port: int, interval: str) -> None:
        settings = (root / "deploy/prometheus/prometheus.yml").read_text("utf-8")
        for given, here in (("127.0.0.1:9400", f"127.0.0.1:{port}"), (SHIPPED, interval)):
            assert given in settings
            settings = settings.replace(given, here)
        (directory / "prometheus.yml").write_text(settings)
        shutil.copy(root / "deploy/prometheus/alerts.yml", directory)
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus", f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> "Prometheus":
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert self._process.poll() is None, f"Prometheus ended; see {self._log.name}"
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).close()
                return self
            assert time.monotonic() < deadline, f"Prometheus was not ready within {READY_SECONDS:.0f} s"
            time.sleep(0.2)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(self, path: str, **parameters: object) -> Any:
        """The data of an answer of the HTTP API. Fails with Prometheus' own words."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def series(self, expression: str, start: float, end: float) -> list[list[tuple[float, float]]]:
        """Times and finite values of each series that has any, every second from start to end."""
        found = self.ask("query_range", query=expression, start=start, end=end, step="1s")["result"]
        points = [[(at, float(text)) for at, text in one["values"]] for one in found]
        finite = [[(at, value) for at, value in one if math.isfinite(value)] for one in points]
        return [one for one in finite if one]

    def growth(self, expression: str, start: float, end: float) -> float:
        """From the first to the last value of a counter, all series together."""
        return sum(one[-1][1] - one[0][1] for one in self.series(expression, start, end))


@contextlib.contextmanager
def scraped(
    root: Path, directory: Path, *settings: str, iterations: int, seconds: float, interval: str = OFTEN
) -> Iterator[tuple[Prometheus, float, float]]:
    """A run with a judge that fails now and then, done, and the Prometheus that scraped it; from when to when."""
    port, judge = free_port(), Process(directory, "--price", "1e-6", "--fault", "error=0.1")
    try:
        with Prometheus(root, directory, port, interval) as prometheus:
            start = time.time()
            rater = json.dumps(judge.arguments(api_key_env="", retries=0))
            arguments = (
                "train", f"train.num_steps={iterations}", "run.name=scraped", f"run.directory={directory}",
                f"metrics.port={port}", "validation.num_quality_samples=0",
                f"reward.functions=[{OWN},"
                f"{{name: judge, target: 'reward.remote.http_judge:HttpJudge', kwargs: {rater}}}]",
                *settings,
            )  # fmt: skip
            with Job(root, directory / "output.txt", *arguments) as job:
                code = job.process.wait(timeout=seconds)
                assert code == 0, job.output[-4000:]
            yield prometheus, start, time.time()
    finally:
        judge.end()


OWN = ",".join(
    f"{{name: {name}, target: 'playground.raters:{kind}'}}"
    for name, kind in (("answer", "Answer"), ("heard", "Heard"), ("manner", "Manner"), ("format", "Format"))
)
