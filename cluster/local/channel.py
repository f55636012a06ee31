"""The lines of JSON between a local cluster's supervisor and the process that started it."""

from __future__ import annotations

import json
import selectors
import subprocess
import threading
import time
from typing import Any

__all__ = ["Channel"]


class Channel:
    """A supervisor's standard input and output, seen from the other side: a line is said, and one is heard for it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._silent = False

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Say a line and wait for the answer.

        Raises TimeoutError if none comes in time, after which nothing more can be asked; ChildProcessError if the
        supervisor has ended.
        """
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s
        with self._lock:
            if self._silent:
                raise TimeoutError("what was asked before has not been answered")
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError):  # a broken pipe, or closed on this side
                raise ChildProcessError("its supervisor has ended") from None
            self._silent = True  # also if this is interrupted: the answer would be taken for the next one's
            answer = self._hear(deadline)
            self._silent = False
        return answer

    def _hear(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("it did not answer in time")
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"its supervisor ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer
