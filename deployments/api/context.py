"""Options of the HTTP application; state and deadline of one request."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from starlette.requests import Request as HTTPRequest

from del_core.errors import DEADLINE_EXCEEDED, INVALID_VALUE, FrameError
from del_core.ohttp import GatewayKey
from deployments.auth.keys import Caller, Keys
from deployments.auth.passes import HeldPass, Passes
from deployments.auth.quotas import Quotas
from deployments.sections import HTTPSettings, QuotaSettings, StreamingSettings
from deployments.telemetry.observation import Observation, Observer, ignore

DEADLINE_HEADER = "X-Request-Deadline-Ms"
_LONGEST_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True)
class APIOptions:
    """Settings and collaborators of the application; by default, any client may call.

    Args:
        quotas: None charges nobody.
        gateway_key: key of the gateway of Oblivious HTTP; None serves none.
        passes: passes that the server gives out and takes; None for none.
        observer: receives every completion when it ends.
        add_request_id: whether responses carry ``X-Request-Id``; Serve adds its own.
    """

    http: HTTPSettings = field(default_factory=HTTPSettings)
    streaming: StreamingSettings = field(default_factory=StreamingSettings)
    keys: Keys = field(default_factory=Keys)
    quotas: Quotas | None = None
    quota_settings: QuotaSettings = field(default_factory=QuotaSettings)
    gateway_key: GatewayKey | None = None
    passes: Passes | None = None
    observer: Observer = ignore
    add_request_id: bool = True


class Deadline:
    """The time until which a client waits for its request; ``end`` is None without a deadline."""

    def __init__(self, header: str | None) -> None:
        """Parse the header: milliseconds from the arrival. Raises FrameError."""
        self.end: float | None = None
        if header is None:
            return
        if not (header.isascii() and header.isdigit() and len(header) <= 8 and 1 <= int(header) <= _LONGEST_MS):
            raise FrameError(INVALID_VALUE, DEADLINE_HEADER, f"must be an integer from 1 to {_LONGEST_MS}")
        self.end = time.monotonic() + int(header) / 1000

    def remaining(self) -> float | None:
        """Return the seconds left, at least 0; None without a deadline."""
        return None if self.end is None else max(0.0, self.end - time.monotonic())

    @staticmethod
    def exceeded() -> FrameError:
        """Return the error of a request whose deadline has passed."""
        return FrameError(DEADLINE_EXCEEDED, DEADLINE_HEADER, "has passed")


@dataclass(frozen=True)
class RequestContext:
    """One request for a completion; ``resources`` are released when the response has ended.

    ``held`` is the pass that it is paid with, if not by the quota of its caller.
    """

    http: HTTPRequest
    caller: Caller
    deadline: Deadline
    observation: Observation
    resources: contextlib.ExitStack
    held: HeldPass | None = None
