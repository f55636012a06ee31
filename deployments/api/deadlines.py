"""Deadlines of requests: ``X-Request-Deadline-Ms``, in milliseconds from the arrival.

A client sends the rest of its own timeout. After the deadline the engine stops the work and its
slot is free. A whole completion is answered 408 ``deadline_exceeded``; a stream ends with an event
of that code.
"""

from __future__ import annotations

import time

from del_core.errors import DEADLINE_EXCEEDED, INVALID_VALUE, FrameError

HEADER = "x-request-deadline-ms"
LONGEST_MS = 24 * 60 * 60 * 1000


class Deadline:
    """The time until which a client waits for its request; ``end`` is None without a deadline."""

    __slots__ = ("end",)

    def __init__(self, header: str | None) -> None:
        """Parse the header's value. Raises FrameError (``invalid_value``)."""
        self.end: float | None = None
        if header is None:
            return
        if not (header.isascii() and header.isdigit() and len(header) <= 8 and 1 <= int(header) <= LONGEST_MS):
            raise FrameError(INVALID_VALUE, "X-Request-Deadline-Ms", f"must be an integer from 1 to {LONGEST_MS}")
        self.end = time.monotonic() + int(header) / 1000

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0; None without a deadline."""
        return None if self.end is None else max(0.0, self.end - time.monotonic())

    @staticmethod
    def exceeded() -> FrameError:
        """Return the error of a request whose deadline has passed."""
        return FrameError(DEADLINE_EXCEEDED, "X-Request-Deadline-Ms", "has passed")
