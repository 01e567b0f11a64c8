"""The playground's judge as a separate process."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any

from playground.raters import Answer
from reward.remote.http_judge import HttpJudge

KEY = "sk-a-key-that-must-stay-hidden"
SLOW = 20.0


class Process:
    """The judge process and its control interface."""

    def __init__(self, directory, *options: str) -> None:
        file = directory / "port"
        command = [sys.executable, "-m", "playground.judge", "--port-file", str(file), "--slow", str(SLOW), *options]
        self.process = subprocess.Popen(command, env=os.environ | {"JUDGE_KEY": KEY}, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not file.exists():
            assert self.process.poll() is None, "the judge did not start"
            assert time.monotonic() < end, "the judge gave no port"
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{file.read_text()}"

    def fail(self, **faults: float) -> None:
        urllib.request.urlopen(f"{self.url}/faults", json.dumps(faults).encode(), timeout=10).close()

    def counts(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/counts", timeout=10) as answer:
            return json.load(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)

    def arguments(self, **changes: Any) -> dict[str, Any]:
        """Return the arguments of a rater that asks this judge."""
        arguments = {
            "name": "judge",
            "version": Answer.version,
            "url": f"{self.url}/rate",
            "timeout": 20,
            "deadline": 60,
            "retries": 1,
            "first_pause": 0.01,
            "breaker_failures": 1000,
            "api_key_env": "JUDGE_KEY",
        }
        return arguments | changes

    def rater(self, **changes: Any) -> HttpJudge:
        return HttpJudge(**self.arguments(**changes))
