"""The process of a vLLM engine that does not run in its worker: its death is noticed, and whoever waits is woken.

vLLM 0.32 notices too, but its synchronous client goes on waiting: for outputs on a queue (SyncMPClient.get_output), for
the answer to a call on a future (call_utility). A killed engine would hold its worker until the lease runs out.
"""

import os
import threading
import time
from typing import Any

from cluster.exit_watcher import exit_status
from cluster.post_mortem import read_exit

LOOK_SECONDS = 0.25


class EngineLiveness:
    """Looks after the engine process of an LLM; one that runs in this process has none."""

    def __init__(self, llm: Any) -> None:
        self.end: str | None = None
        """How the engine ended; None while it lives."""
        core = llm.llm_engine.engine_core
        manager = getattr(getattr(core, "resources", None), "engine_manager", None)
        if manager is None:
            return
        # Ray has its workers ignore their children, so that waitpid never tells how one ended; a pidfd may.
        self._handles = {process.pid: os.pidfd_open(process.pid) for process in manager.processes}
        # Not the client itself, which would then never be collected.
        parts = (core.resources, core.outputs_queue, core.utility_results)
        threading.Thread(target=self._look, args=parts, name="engine life", daemon=True).start()

    def _look(self, resources: Any, outputs: Any, calls: dict[Any, Any]) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        while not resources.engine_dead:  # vLLM sets it, also when it shuts down as it should
            time.sleep(LOOK_SECONDS)
        self.end = "; ".join(self._ended(pid, handle) for pid, handle in self._handles.items())
        outputs.put_nowait(EngineDeadError())
        for answer in list(calls.values()):
            if not answer.done():
                answer.set_exception(EngineDeadError())

    def _ended(self, pid: int, handle: int) -> str:
        status = exit_status(handle)
        os.close(handle)
        how = "ended, exit status not known" if status is None else read_exit(status)
        return f"engine process {pid} {how}"
