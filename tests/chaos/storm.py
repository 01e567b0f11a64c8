"""A real run on a cluster of two nodes, and what is done to it."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from observability.run_directory import read_events, read_iterations, read_replies
from tests.chaos.members import members
from tests.chaos.schedule import KINDS, Fault

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
"""Seconds that anything may take before the run counts as lost."""
JUDGE_SECONDS = 4.0
"""For one answer: long enough for a busy machine, where nobody tells a slow judge from a failing one."""
NO_END = 100_000
"""Iterations of the run: more than anybody waits for. It is asked to stop when the storm is over."""
FAULTY_SHARE = 0.6
"""Of the judge's answers while it fails."""
JUDGE = {"judge-error": "error", "judge-garbage": "garbage", "judge-wrong": "wrong", "judge-slow": "slow"}
NOTICED = {
    "rollout": ("actor_died", "rollout"), "engine": ("actor_died", "rollout"), "stall": ("actor_died", "rollout"),
    "reward": ("actor_died", "reward"), "learner": ("learner_died", ""), "controller": ("controller_died", ""),
    "driver": ("resumed", ""), "disk": ("checkpoint_failed", ""),
}  # fmt: skip
"""The event by which a run says that it has noticed, and the member that it must name."""
HEALED = {
    "learner": "learner_restarted", "controller": "ready", "driver": "ready", "disk": "checkpoint",
}  # fmt: skip
"""The event after which all is as before; of pools it is that the member has joined."""


class Lost(RuntimeError):
    """The run did not come through."""


@dataclass
class Wound:
    """A fault that was done."""

    fault: Fault
    time: float
    """Seconds since the epoch, as events have it."""
    seen: int
    """Events before it."""
    what: str
    """Whom it met."""
    back: float | None = None
    """Seconds until all was as before, where no event says so."""


@dataclass
class Storm:
    """Everything that a run needs around it. A context manager."""

    directory: Path
    seed: int
    in_process: bool
    """Whether engines run inside their workers."""
    wounds: list[Wound] = field(default_factory=list)

    def __enter__(self) -> "Storm":
        from ray.cluster_utils import Cluster

        self.directory.mkdir(parents=True, exist_ok=True)
        self.run = self.directory / "storm"
        self._judge = self._start_judge()
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self._node = self._cluster.add_node(num_cpus=1)
        self._driver = self._start_driver("--config", str(self._config()))
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._driver, self._judge):
            process.kill()
            process.wait()
        self._cluster.shutdown()

    # ---- what a run needs

    def _start_judge(self) -> subprocess.Popen:
        file = self.directory / "judge.port"
        judge = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "playground.judge",
                "--port-file",
                str(file),
                "--slow",
                str(3 * JUDGE_SECONDS),
                "--seed",
                str(self.seed),
            ],
            cwd=ROOT,
        )
        self._until(file.is_file, "the judge to listen")
        self._url = f"http://127.0.0.1:{file.read_text().strip()}"
        return judge

    def _config(self) -> Path:
        """The playground, with a judge elsewhere that does the work of the rater `answer`."""
        own = yaml.safe_load((ROOT / "configs/playground.yaml").read_text())
        judge = {
            "name": "judge", "version": "playground-answer-1", "url": f"{self._url}/rate", "retries": 1,
            "timeout": JUDGE_SECONDS, "deadline": 3 * JUDGE_SECONDS, "first_pause": 0.1, "breaker_seconds": 1.0,
        }  # fmt: skip
        raters = [
            *own["reward"]["functions"],
            {"name": "judge", "target": "reward.remote.http_judge:HttpJudge", "kwargs": judge},
        ]
        few = {"held_out": str(self._few())}
        settings = {
            "extends": str(ROOT / "configs/playground.yaml"),
            "run": {"name": "storm", "directory": str(self.directory), "seed": self.seed, "stall_timeout_s": 60.0},
            "train": {"num_steps": NO_END},
            "checkpoint": {"interval": 3},
            "data": {"validation": few},
            "rollout": {
                "num_workers": 2, "engine_in_process": self.in_process, "batch_size": 8, "heartbeat_timeout_s": 10.0,
            },
            "reward": {
                "functions": raters, "weights": {"judge": 0.8, "heard": 0.1, "manner": 0.1}, "composites": {},
                "heartbeat_timeout_s": 10.0, "max_missing_rate": 0.9,
            },
            "anchor": {"batch_size": 8},
            "validation": {"num_quality_samples": 0, "num_recordings": 1},
        }  # fmt: skip
        path = self.directory / "storm.yaml"
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return path

    def _few(self) -> Path:
        import pyarrow.parquet as pq

        path = self.directory / "few.parquet"
        pq.write_table(pq.read_table(ROOT / "playground/world/data/held_out.parquet").slice(0, 16), path)
        return path

    def _start_driver(self, *arguments: str) -> subprocess.Popen:
        log = (self.directory / "driver.log").open("ab")
        command = [sys.executable, "-m", "duet", "train", *arguments, f"cluster.address={self._cluster.address}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    # ---- what is known of it

    def events(self) -> list[dict]:
        return read_events(self.run) if self.run.is_dir() else []

    def iteration(self) -> int:
        """The last one on record."""
        return read_iterations(self.run).num_rows if (self.run / "iterations.parquet").is_file() else 0

    def whole(self) -> bool:
        return any(event["kind"] == "finished" for event in self.events())

    def _until(self, met: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not met():
            if time.monotonic() > deadline:
                raise Lost(f"waited {seconds:.0f} s for {what}\n{self._last_words()}")
            if getattr(self, "_driver", None) is not None and self._driver.poll() not in (None, 0, -signal.SIGKILL):
                raise Lost(f"the run ended with code {self._driver.returncode} before {what}\n{self._last_words()}")
            if self.whole() and not met():
                raise Lost(f"the run was over before {what}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        log = self.directory / "driver.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-25:]) if log.is_file() else ""

    # ---- what is done to it

    def wait_for(self, fault: Fault) -> None:
        """Until the fault is due."""
        self._until(lambda: self.iteration() >= fault.iteration, f"iteration {fault.iteration}")
        time.sleep(fault.delay)

    def strike(self, fault: Fault) -> Wound:
        """Does a fault, and waits until the run has noticed."""
        wound = Wound(fault, time.time(), len(self.events()), "")
        self.wounds.append(wound)
        if fault.kind in JUDGE:
            wound.what = self._confuse_the_judge(JUDGE[fault.kind], wound)
        elif fault.kind == "disk":
            wound.what = self._fill_the_disk(wound)
        elif fault.kind == "node":
            self._cluster.remove_node(self._node, allow_graceful=False)
            self._node = self._cluster.add_node(num_cpus=1)
            now = self.iteration()
            self._until(lambda: self.iteration() > now, "an iteration after a node was lost")
            wound.back = time.time() - wound.time
        elif fault.kind == "driver":
            wound.what = self._signal(psutil.Process(self._driver.pid), signal.SIGKILL)
            self._driver.wait()
            self._driver = self._start_driver("--resume", str(self.run))
        else:
            role = {"stall": "rollout"}.get(fault.kind, fault.kind)
            victims = members(psutil.Process())[role]
            if not victims:  # still on its way after the fault before
                self._until(lambda: bool(members(psutil.Process())[role]), f"a process of role {role}")
                victims = members(psutil.Process())[role]
            # The oldest: it is at work. One that is starting has the time that starting may take, whatever it does.
            wound.what = self._signal(victims[0], signal.SIGSTOP if fault.kind == "stall" else signal.SIGKILL)
        if fault.kind in NOTICED:
            self._until(lambda: self.noticed(wound) is not None, f"the run to notice: {KINDS[fault.kind]}")
        return wound

    @staticmethod
    def _signal(process: psutil.Process, number: signal.Signals) -> str:
        process.send_signal(number)
        return f"process {process.pid}"

    def _confuse_the_judge(self, kind: str, wound: Wound) -> str:
        """Recovered is the first iteration after the faults in which the judge failed nowhere."""
        now = self.iteration()
        self._tell_judge({kind: FAULTY_SHARE})
        self._until(lambda: self.iteration() >= now + 2, "iterations with a judge that fails")
        self._tell_judge({})
        cleared, after = time.time(), self.iteration()
        self._until(lambda: self._judged(after), "an iteration that is judged as it should be")
        wound.back = time.time() - cleared
        return f"{FAULTY_SHARE:.0%} of its answers"

    def _judged(self, after: int) -> bool:
        """Whether the newest iteration is a later one, and has every score that the judge owes."""
        newest = self.iteration()
        if newest <= after:
            return False
        return not any(row["failed_raters"] for row in read_replies(self.run, newest).to_pylist())

    def _tell_judge(self, faults: dict[str, float]) -> None:
        request = urllib.request.Request(f"{self._url}/faults", json.dumps(faults).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def _fill_the_disk(self, wound: Wound) -> str:
        """The checkpoints lie on a small disk of their own (`small_disk`)."""
        filler = self.run / "checkpoints" / "filler"
        with filler.open("wb") as file:
            try:
                while True:
                    file.write(bytes(2**20))
                    file.flush()
            except OSError:
                pass
        self._until(lambda: self.noticed(wound) is not None, "a checkpoint on a full disk")
        filler.unlink()
        return "no byte left"

    # ---- how it went

    def noticed(self, wound: Wound) -> dict | None:
        """The event by which the run noticed a fault; None where there is none."""
        if wound.fault.kind not in NOTICED:
            return None
        kind, name = NOTICED[wound.fault.kind]
        later = self.events()[wound.seen :]
        return next((e for e in later if e["kind"] == kind and e.get("member", "").startswith(name)), None)

    def healed(self, wound: Wound) -> dict | None:
        """The event after which all was as before; None where there is no such event."""
        event = self.noticed(wound)
        if event is None:
            return None
        kind = HEALED.get(wound.fault.kind, "actor_ready")
        later = self.events()
        later = later[later.index(event) :]
        return next((e for e in later if e["kind"] == kind and e.get("member") == event.get("member")), None)

    def _over(self, wound: Wound) -> bool:
        return wound.back is not None or self.healed(wound) is not None

    def finish(self, iterations: int) -> None:
        """Lets the run heal and come to this many iterations at least, and ends it in order. Raises Lost."""
        self._until(lambda: self.iteration() >= iterations, f"iteration {iterations}")
        self._until(lambda: all(map(self._over, self.wounds)), "the end of every fault")
        self._driver.terminate()
        try:
            code = self._driver.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise Lost(f"the run does not end\n{self._last_words()}") from error
        if code != 0:
            raise Lost(f"the run ended with code {code}\n{self._last_words()}")


def small_disk(folder: Path, megabytes: int) -> None:
    """Mounts a memory file system of this size, seen by this process and its children alone (see `own_mounts`)."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)


def own_mounts() -> list[str]:
    """What a command must begin with to mount what nobody else sees; empty where that is not allowed here."""
    command = ["unshare", "--mount", "--map-root-user"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else []
