"""Detects the death of a vLLM engine process and fails the calls that wait for it.

vLLM 0.32 detects it too, but its synchronous client keeps waiting: for outputs on a queue (SyncMPClient.get_output),
for the result of a call on a future (call_utility). A killed engine would block its worker until the task's deadline.
"""

import os
import threading
import time
from typing import Any

from cluster.exit_watcher import exit_status
from cluster.post_mortem import read_exit

POLL_INTERVAL_S = 0.25


class EngineLiveness:
    """Watches the engine process of an LLM. Has no effect if the engine runs in this process."""

    def __init__(self, llm: Any) -> None:
        self.exit_reason: str | None = None
        """How the engine exited; None while it is alive."""
        core = llm.llm_engine.engine_core
        manager = getattr(getattr(core, "resources", None), "engine_manager", None)
        if manager is None:
            return
        # Ray's workers ignore SIGCHLD, so that waitpid returns no exit status of children; a pidfd may.
        self._handles = {process.pid: os.pidfd_open(process.pid) for process in manager.processes}
        # Not the client itself: the thread would keep it from being garbage-collected.
        parts = (core.resources, core.outputs_queue, core.utility_results)
        threading.Thread(target=self._watch, args=parts, name="engine liveness", daemon=True).start()

    def _watch(self, resources: Any, outputs: Any, calls: dict[Any, Any]) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        while not resources.engine_dead:  # set by vLLM, also on a regular shutdown
            time.sleep(POLL_INTERVAL_S)
        self.exit_reason = "; ".join(self._describe(pid, handle) for pid, handle in self._handles.items())
        outputs.put_nowait(EngineDeadError())
        for result in list(calls.values()):
            if not result.done():
                result.set_exception(EngineDeadError())

    def _describe(self, pid: int, handle: int) -> str:
        status = exit_status(handle)
        os.close(handle)
        reason = "exited, exit status unknown" if status is None else read_exit(status)
        return f"engine process {pid} {reason}"
