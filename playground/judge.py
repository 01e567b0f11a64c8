"""A judge behind HTTP for the playground, which can be told to fail in every way that judges do.

    python -m playground.judge --port-file judge.port --rater answer --fault error=0.2 --seed 7

It speaks the protocol of `reward.http` at POST /rate, and rates with one of the playground's own raters. It listens on
this machine only. Which question meets which fault is drawn from the seed, the question, and how often that question
was asked before, so that neither order nor timing changes it. At any time:

    POST /faults {"error": 1.0}     these shares from now on, the others 0
    GET /counts                     questions asked, and faults by kind

What a real judge has and this one has not: a model, TLS, and more than one key.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from common.errors import InputError
from playground import raters
from reward.types import MissingScore, SpokenReply
from speech.audio import Waveform
from speech.types import Finish, Prompt, Reply

RATERS = {kind.name: kind for kind in (raters.Answer, raters.Heard, raters.Manner, raters.SpokenRight, raters.Format)}
FAULTS = {
    "error": "HTTP 500",
    "busy": "HTTP 429 with Retry-After: 1",
    "refused": "HTTP 400",
    "garbage": "a body of random bytes",
    "wrong": "an answer whose score is no number within the scale",
    "mistyped": "JSON of another shape",
    "slow": "the right answer, after --slow seconds",
    "drip": "the right answer, a byte at a time over --slow seconds",
    "hangup": "the connection ends without an answer",
    "halfway": "the connection ends in the middle of the answer",
    "flood": "a body of a megabyte",
    "echo": "HTTP 401 that quotes the key it was sent",
    "repeat": "the right answer, with the key it was sent in the reason",
}
WRONG: tuple[Any, ...] = ("5", None, True, 1e9, -1, float("nan"), float("inf"), [5], {"score": 5}, "", 0.999, 5.001)
"""What the fault "wrong" says in place of a score."""
MISTYPED: tuple[Any, ...] = (5, "5", [], None, {}, {"scores": 5}, {"score": 5, "reason": 3}, [{"score": 5}])


class FaultyJudge:
    """What the server knows."""

    def __init__(
        self, rater: str, faults: Mapping[str, float], seed: int, slow: float, key: str = "", price: float | None = None
    ) -> None:
        """faults: share of the questions by kind. slow: seconds. key: what callers must show; empty: nothing.
        price: of a word read or written, which makes it tell what an answer costs."""
        self.rater, self.seed, self.slow, self.key, self.price = RATERS[rater](), seed, slow, key, price
        self.lock = threading.Lock()
        """The recogniser hears one at a time."""
        self.asked: Counter[bytes] = Counter()
        """How often, by hash of the question."""
        self.met: Counter[str] = Counter()
        self.faults: dict[str, float] = {}
        self.set_faults(faults)

    def set_faults(self, faults: Mapping[str, object]) -> None:
        """Raises InputError."""
        for name, share in faults.items():
            if name not in FAULTS:
                raise InputError(f"no fault is called {name!r}; faults: {', '.join(FAULTS)}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise InputError(f"fault {name}: {share!r} is not a share in [0, 1]")
        shares = {name: float(share) for name, share in faults.items() if isinstance(share, int | float)}
        if sum(shares.values()) > 1 + 1e-9:
            raise InputError(f"the shares of all faults are {sum(shares.values()):g}, more than 1")
        self.faults = shares

    def draw(self, question: bytes) -> tuple[str, np.random.Generator]:
        """The fault that this asking of a question meets ("" for none), and dice for what else depends on it."""
        short = hashlib.sha256(question).digest()
        with self.lock:
            times, faults = self.asked[short], self.faults
            self.asked[short] += 1
            seed = hashlib.sha256(f"{self.seed} {times} ".encode() + short).digest()
            generator = np.random.default_rng(list(seed))
            place, kind = generator.random(), ""
            for name, share in faults.items():
                if place < share:
                    kind = name
                    break
                place -= share
            self.met[kind or "none"] += 1
        return kind, generator

    def rate(self, question: bytes) -> dict[str, Any]:
        """The right answer. Raises KeyError, TypeError or ValueError for what is no question."""
        asked = json.loads(question)
        prompt, reply = asked["prompt"], asked["reply"]
        sound = None
        if reply["audio"] is not None:
            samples, rate = soundfile.read(io.BytesIO(base64.b64decode(reply["audio"])), dtype="float32")
            sound = Waveform(samples, rate)
        nothing = np.zeros(0, dtype=np.int32)
        spoken = SpokenReply(
            prompt=Prompt(id=prompt["id"], token_ids=nothing, text=prompt["text"], facts=prompt["facts"]),
            reply=Reply(
                prompt_id=prompt["id"],
                index=0,
                token_ids=nothing,
                channels=nothing.astype(np.int8),
                logps=nothing.astype(np.float32),
                weight_version=0,
                finish=Finish.STOP,
                defect=None,
            ),
            text=reply["text"],
            waveform=sound,
        )
        with self.lock:
            score = self.rater.rate(spoken)
        if isinstance(score, MissingScore):
            return {"score": None, "reason": score.reason, "version": self.rater.version}
        reason = f"{spoken.text!r} to {spoken.prompt.text!r}"
        answer = {"score": score, "reason": reason, "version": self.rater.version}
        return answer if self.price is None else answer | {"usage": self._usage(spoken, reason, self.price)}

    @staticmethod
    def _usage(spoken: SpokenReply, reason: str, price: float) -> dict[str, float]:
        """A word is a token: it has no model whose tokens could be counted."""
        read, written = len(f"{spoken.prompt.text} {spoken.text}".split()), len(reason.split())
        return {"input_tokens": read, "output_tokens": written, "cost": price * (read + written)}


class JudgeHandler(BaseHTTPRequestHandler):
    """One request, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    judge: FaultyJudge

    def do_GET(self) -> None:
        if self.path != "/counts":
            return self._say(404, {"error": "GET /counts"})
        with self.judge.lock:
            self._say(200, {"asked": sum(self.judge.asked.values()), "met": dict(self.judge.met)})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/faults":
            return self._obey(body)
        if self.path != "/rate":
            return self._say(404, {"error": "POST /rate or /faults"})
        if self.judge.key and self.headers.get("Authorization") != f"Bearer {self.judge.key}":
            return self._say(401, {"error": "no key, or a wrong one"})
        fault, generator = self.judge.draw(body)
        try:
            answer = self.judge.rate(body)
        except (KeyError, TypeError, ValueError, soundfile.LibsndfileError) as error:
            return self._say(400, {"error": f"no question: {type(error).__name__}"})
        self._answer(fault, answer, generator)

    def _obey(self, body: bytes) -> None:
        try:
            self.judge.set_faults(dict(json.loads(body)))
        except (TypeError, ValueError) as error:
            return self._say(400, {"error": str(error)})
        self._say(200, self.judge.faults)

    def _answer(self, fault: str, answer: dict[str, Any], generator: np.random.Generator) -> None:
        whole = json.dumps(answer).encode()
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if fault == "error":
            self._say(500, {"error": "told to fail"})
        elif fault == "busy":
            self._say(429, {"error": "told to be busy"}, {"Retry-After": "1"})
        elif fault == "refused":
            self._say(400, {"error": "told to refuse"})
        elif fault == "echo":
            self._say(401, {"error": f"the key {shown} is not known"})
        elif fault == "garbage":
            self._send(200, generator.bytes(200))
        elif fault == "flood":
            self._send(200, b'{"score": 5, "reason": "' + b"x" * 2**20 + b'"}')
        elif fault == "wrong":
            self._say(200, answer | {"score": WRONG[generator.integers(len(WRONG))]})
        elif fault == "mistyped":
            self._say(200, MISTYPED[generator.integers(len(MISTYPED))])
        elif fault == "repeat":
            self._say(200, answer | {"reason": f"asked with the key {shown}"})
        elif fault == "slow":
            time.sleep(self.judge.slow)
            self._send(200, whole)
        elif fault == "drip":
            self._drip(whole)
        elif fault in ("hangup", "halfway"):
            if fault == "halfway":
                self._head(200, len(whole))
                self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
        else:
            self._send(200, whole)

    def _drip(self, body: bytes) -> None:
        self._head(200, len(body))
        for place in range(len(body)):
            time.sleep(self.judge.slow / len(body))
            self.wfile.write(body[place : place + 1])
            self.wfile.flush()

    def _say(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(body), headers)
        self.wfile.write(body)

    def _head(self, status: int, length: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: /counts says what happened."""


class JudgeHttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, judge: FaultyJudge, port: int) -> None:
        """port: 0 for a free one."""
        super().__init__(("127.0.0.1", port), type("JudgeHandler", (JudgeHandler,), {"judge": judge}))

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: callers that lost patience are what this is for."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m playground.judge", description="A judge that fails when told to.")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--port-file", type=Path, help="where the port is written once it listens")
    parser.add_argument("--rater", choices=RATERS, default="answer")
    parser.add_argument("--fault", action="append", default=[], metavar="NAME=SHARE", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0, help="which question meets which fault")
    parser.add_argument("--slow", type=float, default=30.0, help="seconds")
    parser.add_argument("--price", type=float, help="of a word that it reads or writes; has it tell what answers cost")
    parser.add_argument("--key-env", default="", help="environment variable with the key that callers must show")
    options = parser.parse_args()
    try:
        shares = {name: float(share) for name, _, share in (fault.partition("=") for fault in options.fault)}
        key = os.environ.get(options.key_env, "")
        judge = FaultyJudge(options.rater, shares, options.seed, options.slow, key, options.price)
    except ValueError as error:
        parser.error(str(error))
    server = JudgeHttpServer(judge, options.port)
    if options.port_file:
        aside = options.port_file.with_name(options.port_file.name + ".part")
        aside.write_text(str(server.server_address[1]))
        aside.rename(options.port_file)
    print(f"a judge of {options.rater!r} at http://127.0.0.1:{server.server_address[1]}/rate", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
