"""One controller a run: whoever works on a run's directory holds a lock on it for as long as its process lives."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Self, TextIO

from speech.errors import InputError

NAME = ".claim"
LOOK_SECONDS = 0.1


class Claim:
    """A held lock. The operating system lets go of it when the process ends, however it ends."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    @classmethod
    def take(cls, run: Path, seconds: float = 15.0) -> Self:
        """Waits up to `seconds` for a process that is ending. Raises InputError when somebody else is at work on this
        run."""
        file = (run / NAME).open("a+")
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    file.close()
                    raise InputError(f"{run} is being worked on by {holder}; wait until that has ended") from error
                time.sleep(LOOK_SECONDS)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return cls(file)

    @staticmethod
    def held(run: Path) -> bool:
        """Whether somebody works on this run now. Takes nothing."""
        try:
            file = (run / NAME).open("rb")
        except OSError:  # nobody ever did
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def release(self) -> None:
        self._file.close()
