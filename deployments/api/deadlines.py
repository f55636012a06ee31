"""How long a request may take, as its caller says: ``X-Request-Deadline-Ms``, milliseconds from its arrival.

A client sends what is left of its own time limit. Work that nobody waits for any more is stopped: the engine's slot is
free again, and a whole completion is answered 408 ``deadline_exceeded``, a stream ended by an event with that code.
"""

from __future__ import annotations

import time

from del_core.errors import DEADLINE_EXCEEDED, INVALID_VALUE, FrameError

__all__ = ["HEADER", "LONGEST_MS", "Deadline"]

HEADER = "x-request-deadline-ms"
LONGEST_MS = 24 * 60 * 60 * 1000


class Deadline:
    """The moment until which a request is worth working on; ``end`` is None if its caller has set none."""

    __slots__ = ("end",)

    def __init__(self, header: str | None) -> None:
        """From the header's value. Raises FrameError (``invalid_value``)."""
        self.end: float | None = None
        if header is None:
            return
        if not (header.isascii() and header.isdigit() and len(header) <= 8 and 1 <= int(header) <= LONGEST_MS):
            raise FrameError(
                INVALID_VALUE, "X-Request-Deadline-Ms", f"is malformed; an integer in 1..{LONGEST_MS} is allowed"
            )
        self.end = time.monotonic() + int(header) / 1000

    def remaining(self) -> float | None:
        """Seconds left, at least 0; None without a deadline."""
        return None if self.end is None else max(0.0, self.end - time.monotonic())

    @staticmethod
    def exceeded() -> FrameError:
        """The error to answer with."""
        return FrameError(DEADLINE_EXCEEDED, "X-Request-Deadline-Ms", "the time that the request allowed has passed")
