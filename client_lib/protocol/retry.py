"""Failures that a retry, which resends identical bytes, may cure."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from client_lib.errors import BundleOutdatedError, ConnectionFailedError, DELClientError, TimeoutExceededError

# Statuses below 500 that are worth a retry. A 409 about the fingerprint is BundleOutdatedError.
_RETRIED_STATUSES = frozenset({408, 409, 429})
_INTERNAL_ERROR = 500


class InternalErrors:
    """Counts the internal errors (500) of one call: a second one is no longer chance."""

    def __init__(self) -> None:
        self._count = 0

    def ends(self, failure: DELClientError) -> bool:
        """Count a failure; return True from the second internal error on, which ends the call."""
        self._count += failure.status == _INTERNAL_ERROR
        return self.repeated

    @property
    def repeated(self) -> bool:
        """Whether there was a second internal error."""
        return self._count > 1


def is_temporary(failure: DELClientError) -> bool:
    """Return whether the same bytes may succeed later."""
    if isinstance(failure, BundleOutdatedError):
        return False
    if failure.status is not None:
        return failure.status in _RETRIED_STATUSES or failure.status >= 500
    if isinstance(failure, TimeoutExceededError):
        # After a read timeout the server may still be computing; a retry would double its load.
        return failure.phase == "connect"
    return isinstance(failure, ConnectionFailedError)


def parse_retry_after(value: str | None, *, now: datetime | None = None) -> float | None:
    """Return the seconds of a ``Retry-After`` header (seconds or an HTTP date), or None."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.replace(".", "", 1).isdigit() and len(value) < 20:
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
