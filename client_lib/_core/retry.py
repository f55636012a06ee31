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

from client_lib._validation import check_integer
from client_lib.errors import BundleOutdated, ConnectionFailed, DELClientError, TimeoutExceeded

__all__ = ["DEFAULT_RETRIES", "InternalErrors", "RetryPolicy", "is_temporary", "parse_retry_after"]

DEFAULT_RETRIES = 12

#: Statuses below 500 that say "not now" rather than "never". 409 is retried unless it is about the fingerprint.
RETRIED_STATUSES = frozenset({408, 409, 429})
_INTERNAL_ERROR = 500

_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_retries`` further tries after the first; the pause before try k+1 is drawn from [1/2, 1] of
    ``min(longest_pause, first_pause * 2**k)`` seconds, and is never shorter than the server's ``Retry-After``. A wish
    of more than ``longest_wait`` seconds ends the call, with the wish in the error's ``retry_after``.

    With the defaults a call lasts through 43 to 86 s without a server: a replica that died takes 30 to 40 s to come
    back. The pauses grow beyond a short ``Retry-After`` because a server that is not back yet can only guess.
    """

    max_retries: int = DEFAULT_RETRIES
    first_pause: float = 0.5
    longest_pause: float = 10.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        check_integer("max_retries", self.max_retries, 0, 100)

    def pause(self, failure: DELClientError, retries_done: int) -> float | None:
        """Seconds to wait before the next try after this failure, or None if it must not be tried again."""
        if retries_done >= self.max_retries or not is_temporary(failure):
            return None
        wish = failure.retry_after or 0.0
        return None if wish > self.longest_wait else max(wish, self.backoff(retries_done))

    def backoff(self, tries_done: int) -> float:
        """A jittered pause in seconds that doubles with every try."""
        longest: float = min(self.longest_pause, self.first_pause * 2.0 ** min(tries_done, 30))
        return longest * _random.uniform(0.5, 1.0)


class InternalErrors:
    """Counts the internal errors (500) of one call: a first one may be chance, a second one is no passing state."""

    def __init__(self) -> None:
        self._seen = 0

    def ends(self, failure: DELClientError) -> bool:
        """Account for a failure; True from the second internal error on: then nothing is tried again."""
        self._seen += failure.status == _INTERNAL_ERROR
        return self.repeated

    @property
    def repeated(self) -> bool:
        """Whether there has been a second one."""
        return self._seen > 1


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
