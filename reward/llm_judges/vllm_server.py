"""vLLM's OpenAI-compatible server as a child process: command line, environment, start, health and end. No Ray."""

import base64
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from reward.llm_judges import process_guard
from reward.llm_judges.parsing import fingerprint
from reward.llm_judges.prompts import rubric_digest
from reward.remote.http_judge import encode_wav
from speech.audio import Waveform

MAX_AUDIO_PER_PROMPT = 2
"""Audio of question and reply."""
POLL_S = 0.2
"""Interval of health checks during the start."""
REQUEST_TIMEOUT_S = 60.0
"""Time limit of the audio check; other requests during the start take a tenth."""
MAX_PORTS = 3
"""Ports to try: another process may take a free port before the server binds it."""
MIDDLEWARE = "reward.llm_judges.require_key.RequireKey"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The server is within the cluster, where proxies of the environment do not reach."""
LOG_LINES = 15
"""Lines of the server's log that an error quotes."""


@dataclass(frozen=True, kw_only=True)
class VllmServerConfig:
    """Settings of a server. Judges that have all of them in common share one."""

    checkpoint: str
    listens: bool
    dtype: str
    max_length: int
    """Maximum tokens of question and answer together."""
    max_sequences: int
    threads: int
    """CPU threads."""
    kv_cache_gib: float
    """CPU memory of the KV cache."""
    gpu_memory_share: float
    tensor_parallel: int
    trust_remote_code: bool


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Address of a running server."""

    url: str
    """Base URL of the OpenAI interface, up to /v1."""
    model: str
    """Name of the served model: the version of the engine."""
    key: str = field(repr=False)


class ServerFailed(RuntimeError):
    """The server did not start; the message quotes the end of its log."""


def engine_version(config: VllmServerConfig) -> str:
    """Return a version that covers the weights and all settings that change answers. Reads the whole checkpoint."""
    [package] = packages_distributions().get("vllm", ["vllm"])[:1]
    parts = (version(package), config.dtype, config.max_length, config.listens)
    return f"{fingerprint(Path(config.checkpoint))}-{rubric_digest(*parts)[:6]}"


def server_command(config: VllmServerConfig, model: str, host: str, port: int) -> list[str]:
    """Return the command line of the server. The API key is not on it: other users can read command lines."""
    options: dict[str, Any] = {
        "model": config.checkpoint,
        "served-model-name": model,
        "host": host,
        "port": port,
        "load-format": "safetensors",  # never unpickle
        "generation-config": "vllm",  # sampling settings come from the request alone
        "dtype": config.dtype,
        "max-model-len": config.max_length,
        "max-num-seqs": config.max_sequences,
        "tensor-parallel-size": config.tensor_parallel,
        "gpu-memory-utilization": config.gpu_memory_share,
        "logprobs-mode": "raw_logprobs",  # over the whole vocabulary, to see whether a digit was likely at all
        # Small models fill the answer with blanks where the grammar allows blanks between its parts.
        "structured-outputs-config": json.dumps({"backend": "xgrammar", "disable_any_whitespace": True}),
        "uvicorn-log-level": "warning",
        "middleware": MIDDLEWARE,
    }
    flags = ["enforce-eager", "enable-prefix-caching", "disable-uvicorn-access-log", "disable-fastapi-docs"]
    if config.listens:
        options["limit-mm-per-prompt"] = json.dumps({"audio": MAX_AUDIO_PER_PROMPT})
    if config.tensor_parallel > 1:
        options["distributed-executor-backend"] = "mp"
    if config.trust_remote_code:
        flags.append("trust-remote-code")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command + [f"--{flag}" for flag in flags]


def server_environment(config: VllmServerConfig, key: str) -> dict[str, str]:
    """Return the environment of the server process."""
    defaults = {"VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    root = str(Path(__file__).resolve().parents[2])  # for `MIDDLEWARE`
    return {
        **defaults,
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        "VLLM_API_KEY": key,
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(config.kv_cache_gib))),
        # By default every engine binds itself to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(config.threads),
        "OPENBLAS_NUM_THREADS": str(config.threads),
    }


class VllmServer:
    """A server process and its log. It ends with this process, however this process ends."""

    def __init__(self, config: VllmServerConfig, host: str, log: Path) -> None:
        self.config, self._host, self._log = config, host, log
        self._key = secrets.token_urlsafe(32)
        self._process: subprocess.Popen | None = None

    def start(self, timeout_s: float) -> Endpoint:
        """Start the server and wait until it answers.

        Raise InputError for a model that does not accept audio although the judge listens, ServerFailed if the process
        ends or does not answer in time.
        """
        end = time.monotonic() + timeout_s
        model = engine_version(self.config)
        for attempt in range(1, MAX_PORTS + 1):
            port = _free_port(self._host)
            self._launch(server_command(self.config, model, self._host, port))
            root = f"http://{_url_host(self._host)}:{port}"
            try:
                self._wait_healthy(root, end, timeout_s)
                break
            except ServerFailed as error:
                if attempt == MAX_PORTS or "address already in use" not in str(error).lower():
                    raise
        endpoint = Endpoint(url=f"{root}/v1", model=model, key=self._key)
        if self.config.listens:
            self._check_audio(endpoint)
        return endpoint

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the process. Return True if it has ended."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the server and its children."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(process_guard.STOP_S + 5.0)
            self._process.kill()
            self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the log, without the key."""
        try:
            lines = self._log.read_text(errors="replace").replace(self._key, "[key]").splitlines()
        except OSError:
            return "no log"
        return "\n".join([line[:400] for line in lines if line.strip()][-LOG_LINES:])

    def _launch(self, command: list[str]) -> None:
        guard = [sys.executable, "-I", "-S", process_guard.__file__, str(os.getpid()), *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                guard,
                env=server_environment(self.config, self._key),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal to this process's group must not end the guard before its work
            )

    def _wait_healthy(self, root: str, end: float, timeout_s: float) -> None:
        while not self.wait(POLL_S):
            with suppress(OSError), NO_PROXY.open(f"{root}/health", timeout=REQUEST_TIMEOUT_S / 10):
                return
            if time.monotonic() > end:
                self.stop()
                raise ServerFailed(
                    f"the judge {self.config.checkpoint} did not answer within {timeout_s:.0f} s (start_seconds); "
                    f"raise start_seconds, or see the end of its log:\n{self.log_tail()}"
                )
        assert self._process is not None
        raise ServerFailed(
            f"the judge {self.config.checkpoint} ended with status {self._process.returncode} at its start; "
            f"the end of its log:\n{self.log_tail()}"
        )

    def _check_audio(self, endpoint: Endpoint) -> None:
        """Send half a second of silence. Raise InputError if the model rejects audio."""
        silence = base64.b64encode(encode_wav(Waveform(np.zeros(8000, dtype=np.float32), 16000))).decode()
        part = {"type": "input_audio", "input_audio": {"data": silence, "format": "wav"}}
        body = {
            "model": endpoint.model,
            "messages": [{"role": "user", "content": [part]}],
            "max_completion_tokens": 1,
        }
        headers = {"Authorization": f"Bearer {endpoint.key}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{endpoint.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            NO_PROXY.open(request, timeout=REQUEST_TIMEOUT_S).close()
        except urllib.error.HTTPError as error:
            answer = " ".join(error.read(2000).decode(errors="replace").split())
            self.stop()
            if error.code != 400:
                raise ServerFailed(f"the judge {self.config.checkpoint} fails on audio: {answer}") from None
            raise InputError(
                f"listens: true, but the model of {self.config.checkpoint} takes no audio; "
                f"listens: false lets it read ({answer:.300})"
            ) from None


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as found:
        found.bind((host, 0))
        return found.getsockname()[1]


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
