"""Resident memory of processes while something runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import psutil

__all__ = ["PeakMemory"]


class PeakMemory:
    """Samples the resident memory of processes, in bytes, in a thread while the context is open.

    ``most`` is the largest sum seen since the context was entered. A process that has ended counts
    as nothing.
    """

    def __init__(self, processes: Sequence[psutil.Process], every_s: float) -> None:
        self._processes, self._every_s = processes, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self.most = 0

    def now(self) -> int:
        """Return the sum over the processes."""
        total = 0
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _look(self) -> None:
        self.most = max(self.most, self.now())

    def _look_on(self) -> None:
        while not self._ended.wait(self._every_s):
            self._look()

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
