"""When to try again, and how long to wait before: exponential backoff with jitter that honours ``Retry-After``.

A retry resends the identical bytes. Quantising the same prompt a second time would draw fresh noise, and two noisy
copies of one prompt tell a server more than one: the privacy losses add up. So a frame is built once and this module
only decides about sending it again.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from client_lib._checks import check_integer
from client_lib.errors import BundleOutdated, ConnectionFailed, DELClientError, TimeoutExceeded

__all__ = ["RetryPolicy", "parse_retry_after"]

#: Statuses below 500 that say "not now" rather than "never". 409 is retried unless it is about the fingerprint.
RETRIED_STATUSES = frozenset({408, 409, 429})

_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_retries`` further tries after the first; the pause before try k+1 is drawn from [1/2, 1] of
    ``min(longest_pause, first_pause * 2**k)`` seconds. A ``Retry-After`` of up to ``longest_wait`` seconds is waited
    for instead; a longer one ends the call, with the wish in the error's ``retry_after``.
    """

    max_retries: int = 4
    first_pause: float = 0.5
    longest_pause: float = 8.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        check_integer("max_retries", self.max_retries, 0, 100)

    def pause(self, failure: DELClientError, retries_done: int) -> float | None:
        """Seconds to wait before the next try after this failure, or None if it must not be tried again."""
        if retries_done >= self.max_retries or not is_temporary(failure):
            return None
        if failure.retry_after is not None:
            return failure.retry_after if failure.retry_after <= self.longest_wait else None
        return self.backoff(retries_done)

    def backoff(self, tries_done: int) -> float:
        """A jittered pause in seconds that doubles with every try."""
        longest: float = min(self.longest_pause, self.first_pause * 2.0 ** min(tries_done, 30))
        return longest * _random.uniform(0.5, 1.0)


def is_temporary(failure: DELClientError) -> bool:
    """Whether the same bytes may succeed later: the connection or the server failed, or it said "not now"."""
    if isinstance(failure, BundleOutdated):
        return False
    if failure.status is not None:
        return failure.status in RETRIED_STATUSES or failure.status >= 500
    if isinstance(failure, TimeoutExceeded):
        # After a read timeout the server may be computing still; asking again would double its load.
        return failure.phase == "connect"
    return isinstance(failure, ConnectionFailed)


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Seconds from a ``Retry-After`` header (a number of seconds or an HTTP date); None if absent or unreadable."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.replace(".", "", 1).isdigit() and len(value) < 20:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
