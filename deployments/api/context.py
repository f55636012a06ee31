"""Options of the HTTP application, and the state of one request."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from starlette.requests import Request as HTTPRequest

from deployments.api.deadlines import Deadline
from deployments.auth.keys import Caller, Keys
from deployments.auth.quotas import Quotas
from deployments.sections import HTTPSettings, QuotaSettings, StreamingSettings
from deployments.telemetry.observation import Observation, Observer, ignore


@dataclass(frozen=True)
class APIOptions:
    """Settings and collaborators of the application.

    Args:
        keys: by default, any client may call.
        quotas: charge callers that have limits; None charges nobody.
        observer: receives every completion when it ends.
        add_request_id: whether responses carry ``X-Request-Id``; Serve adds its own.
    """

    http: HTTPSettings = field(default_factory=HTTPSettings)
    streaming: StreamingSettings = field(default_factory=StreamingSettings)
    keys: Keys = field(default_factory=Keys)
    quotas: Quotas | None = None
    quota_settings: QuotaSettings = field(default_factory=QuotaSettings)
    observer: Observer = ignore
    add_request_id: bool = True


@dataclass(frozen=True)
class RequestContext:
    """One request for a completion; ``resources`` are released when the response has ended."""

    http: HTTPRequest
    caller: Caller
    deadline: Deadline
    observation: Observation
    resources: contextlib.ExitStack
