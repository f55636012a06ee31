"""Watching calls: what a log or a tracer is told, and how a flow is watched without knowing of it.

A flow (:mod:`client_lib._core.effects`) is watched from outside, by a generator that passes its effects on. What
observers
are told is listed in ``docs/guides/client.md``: sizes, times, statuses, names of errors; never text, token ids or
counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

from client_lib._core.effects import Effect, Emit, Flow, Head, Send, Sleep
from client_lib.errors import DELClientError
from client_lib.types import Completion

__all__ = ["Attributes", "CallObserver", "TelemetryHook", "observed"]

T = TypeVar("T")
Attributes: TypeAlias = Mapping[str, str | int | float | bool]


class CallObserver(Protocol):
    """Is told about one call."""

    def headers(self) -> Mapping[str, str]:
        """Headers to send with every request of the call, such as ``traceparent``."""

    def event(self, name: str, attributes: Attributes) -> object:
        """Something has happened: ``request``, ``response``, ``retry``, ``resume`` or ``first_token``."""

    def end(self, attributes: Attributes, error: DELClientError | None) -> object:
        """The call is over; not told twice. ``attributes["closed"]``: its caller has left it early."""


class TelemetryHook(Protocol):
    """Is told about all calls of a client, from any thread. What it raises is ignored."""

    def begin(self, operation: str, attributes: Attributes) -> CallObserver | None:
        """A call begins: ``complete``, ``stream``, ``models`` or ``bundle`` (loading one). None: not interested."""


def observed(hooks: Sequence[TelemetryHook], operation: str, attributes: Attributes, flow: Flow[T]) -> Flow[T]:
    """The same flow, with the hooks told what happens in it from its first step on."""
    watch = _Watch([observer for hook in hooks if (observer := _begin(hook, operation, attributes)) is not None])
    if not watch.observers:
        return (yield from flow)
    outcome: dict[str, str | int | float | bool] = {"closed": True}
    failure: DELClientError | None = None
    try:
        effect = next(flow)
        while True:
            try:
                value: Any = yield watch.before(effect)
            except DELClientError as error:
                watch.failed(effect, error)
                effect = flow.throw(error)
            else:
                watch.after(effect, value)
                effect = flow.send(value)
    except StopIteration as end:
        outcome = _summary(end.value)
        result: T = end.value
        return result
    except DELClientError as error:
        failure, outcome = error, {}
        raise
    finally:
        flow.close()
        watch.end(outcome, failure)


class _Watch:
    """Turns the effects of one call into events."""

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        self.observers = observers
        self._began = self._sent = time.monotonic()
        self._requests = self._retries = self._resumes = 0
        self._awaits_token = True

    def before(self, effect: Effect) -> Effect:
        match effect:
            case Send():
                self._requests += 1
                self._sent = time.monotonic()
                size = len(effect.content or b"")
                self._tell("request", {"method": effect.method, "path": effect.path, "bytes": size})
                extra: dict[str, str] = {}
                for observer in self.observers:
                    with _ignored():
                        extra.update(observer.headers())
                return replace(effect, headers={**effect.headers, **extra}) if extra else effect
            case Sleep(seconds, "resume"):
                self._resumes += 1
                self._tell("resume", {"pause_s": round(seconds, 3)})
            case Sleep(seconds):
                self._retries += 1
                self._tell("retry", {"pause_s": round(seconds, 3), "why": effect.why})
            case Emit() if self._awaits_token:
                self._awaits_token = False
                self._tell("first_token", {"seconds": _since(self._began)})
        return effect

    def after(self, effect: Effect, value: object) -> None:
        if isinstance(effect, Send) and isinstance(value, Head):
            request_id = value.headers.get("x-request-id")
            attributes: dict[str, str | int | float | bool] = {"status": value.status, "seconds": _since(self._sent)}
            if request_id is not None:
                attributes["request_id"] = request_id
            self._tell("response", attributes)

    def failed(self, effect: Effect, error: DELClientError) -> None:
        if isinstance(effect, Send):
            self._tell("response", {"error": type(error).__name__, "seconds": _since(self._sent)})

    def end(self, outcome: Attributes, error: DELClientError | None) -> None:
        attributes = {
            **outcome,
            "seconds": _since(self._began),
            "requests": self._requests,
            "retries": self._retries,
            "resumes": self._resumes,
        }
        for observer in self.observers:
            with _ignored():
                observer.end(attributes, error)

    def _tell(self, name: str, attributes: Attributes) -> None:
        for observer in self.observers:
            with _ignored():
                observer.event(name, attributes)


def _begin(hook: TelemetryHook, operation: str, attributes: Attributes) -> CallObserver | None:
    try:
        return hook.begin(operation, attributes)
    except Exception:
        return None


def _ignored() -> contextlib.suppress:
    """A call must not fail because it is watched."""
    return contextlib.suppress(Exception)


def _summary(result: object) -> dict[str, str | int | float | bool]:
    """What may be told of a result."""
    if not isinstance(result, Completion):
        return {}
    summary: dict[str, str | int | float | bool] = {
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
        "bytes_sent": result.bytes_sent,
    }
    if result.request_id is not None:
        summary["request_id"] = result.request_id
    return summary


def _since(moment: float) -> float:
    return round(time.monotonic() - moment, 6)
