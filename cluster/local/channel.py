"""Messages between a local cluster's supervisor and the process that started it.

The first line of the supervisor's input holds :class:`SupervisorOptions`. Further lines are orders:
``{"deploy": applications}`` replaces the applications, ``{"drain": seconds}`` finishes the requests
in flight. Each is answered by one line, ``{"ready": true}`` or ``{"failed": reason}``.
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import subprocess
import threading
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class SupervisorOptions:
    """Options of a supervisor.

    Args:
        applications: the JSON of the first deployment; may be empty.
        nodes: the fields of :class:`cluster.local.nodes.Nodes`.
    """

    applications: list[dict[str, Any]]
    host: str
    port: int
    nodes: dict[str, Any]
    gcs_port: int
    dashboard_port: int | None
    directory: str


class Channel:
    """Connection to a supervisor: each line to its input is answered by a line of its output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._unanswered = False

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Return the answer. Raises TimeoutError (later messages fail too), ChildProcessError."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + timeout_s
        with self._lock:
            if self._unanswered:
                raise TimeoutError("the previous message has not been answered")
            try:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError):  # a broken or closed pipe
                raise ChildProcessError("its supervisor has ended") from None
            self._unanswered = True  # stays after an interruption: the answer would be taken for the next one
            answer = self._read(deadline)
            self._unanswered = False
        return answer

    def _read(self, deadline: float) -> dict[str, Any]:
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
