"""The retry policy: what is temporary, how long to wait, when to give up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from client_lib import (
    BundleOutdatedError,
    ConnectionFailedError,
    DELClientError,
    InvalidRequestError,
    OverloadedError,
    ProtocolError,
    RetryPolicy,
    ServerError,
    TimeoutExceededError,
)
from client_lib.protocol.retry import InternalErrors, parse_retry_after

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("failure", "temporary"),
    [
        (ConnectionFailedError("x"), True),
        (TimeoutExceededError("x", phase="connect"), True),
        (TimeoutExceededError("x", phase="read"), False),
        (TimeoutExceededError("x", phase="total"), False),
        (TimeoutExceededError("x", phase="first_token"), False),
        (TimeoutExceededError("x", status=408), True),
        (ServerError("x", status=409), True),
        (BundleOutdatedError("x", status=409), False),
        (BundleOutdatedError("x"), False),
        (OverloadedError("x", status=429), True),
        (OverloadedError("x", status=503), True),
        (ServerError("x", status=502), True),
        (ServerError("x", status=504), True),
        (ServerError("x", status=500), True),
        (ServerError("x", status=599), True),
        (ServerError("x", status=418), False),
        (InvalidRequestError("x", status=400), False),
        (InvalidRequestError("x"), False),
        (ProtocolError("x"), False),
    ],
)
def test_what_is_tried_again(failure: DELClientError, temporary: bool) -> None:
    assert (RetryPolicy().pause(failure, 0) is not None) == temporary


def test_retries_run_out() -> None:
    policy = RetryPolicy(max_retries=2)
    pauses = [policy.pause(ConnectionFailedError("x"), done) for done in range(4)]
    assert [pause is None for pause in pauses] == [False, False, True, True]
    assert RetryPolicy(max_retries=0).pause(ConnectionFailedError("x"), 0) is None


def test_backoff_doubles_up_to_a_bound_and_is_jittered() -> None:
    policy = RetryPolicy(max_retries=100, first_pause=0.5, longest_pause=8.0)
    for done in range(100):
        longest = min(8.0, 0.5 * 2**done)
        pauses = {policy.backoff(done) for _ in range(20)}
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(pauses) > 1  # 20 draws of 53 random bits


@pytest.mark.parametrize(("wish", "pause"), [(3.5, 3.5), (60.0, 60.0), (60.5, None), (1e9, None)])
def test_the_server_is_asked_again_when_it_wishes(wish: float, pause: float | None) -> None:
    assert RetryPolicy().pause(OverloadedError("x", status=503, retry_after=wish), 0) == pause


def test_pauses_grow_beyond_a_short_wish() -> None:
    policy = RetryPolicy()
    impatient = OverloadedError("x", status=503, retry_after=0.0)
    assert all(0.25 * 2**k <= (policy.pause(impatient, k) or 0.0) <= 0.5 * 2**k for k in range(5))


@pytest.mark.parametrize("wish", [None, 0.0, 1.0, 5.0])
def test_by_default_a_replica_has_time_to_come_back(wish: float | None) -> None:
    """However the jitter falls: 40 s at least, and not so long that a wrong URL is never told."""
    policy, failure, waited, tries = RetryPolicy(), OverloadedError("x", status=503, retry_after=wish), 0.0, 0
    while (pause := policy.pause(failure, tries)) is not None:
        waited, tries = waited + pause, tries + 1
    assert 40 <= waited <= 120


def test_one_internal_error_is_chance_and_a_second_ends_the_call() -> None:
    seen = InternalErrors()
    others = [OverloadedError("x", status=503), ConnectionFailedError("x"), ServerError("x", status=502)]
    assert not any(seen.ends(failure) for failure in [*others, ServerError("x", status=500), *others])
    assert not seen.repeated
    assert seen.ends(ServerError("x", status=500))
    assert seen.repeated


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
        ("²", None),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Wed, 02 Jan 2030 03:04:15", 10.0),  # without a zone: UTC
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, now=NOW) == seconds


@pytest.mark.parametrize("value", [-1, 101, 1.5, True, "2", None])
def test_bad_limits_are_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="max_retries"):
        RetryPolicy(value)
