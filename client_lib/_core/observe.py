"""Observation of calls: a generator passes a flow's effects on and reports them as events.

docs/guides/client.md lists the attributes; none is derived from text, token ids or counts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from client_lib._core.effects import Effect, Emit, Flow, Head, Send, Sleep
from client_lib.errors import DELClientError
from client_lib.options import Attributes, CallObserver, TelemetryHook
from client_lib.protocol.responses import REQUEST_ID
from client_lib.types import Completion

T = TypeVar("T")


def observed(hooks: Sequence[TelemetryHook], operation: str, attributes: Attributes, flow: Flow[T]) -> Flow[T]:
    """Return the same flow, observed by the hooks from its first step on."""
    observers: list[CallObserver] = []
    for hook in hooks:
        with _ignored():
            if (observer := hook.begin(operation, attributes)) is not None:
                observers.append(observer)
    watch = _Watch(observers)
    if not observers:
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
    """Reports the effects of one call as events."""

    def __init__(self, observers: Sequence[CallObserver]) -> None:
        self.observers = observers
        self._began = self._sent = time.monotonic()
        self._counts = {"requests": 0, "retries": 0, "resumes": 0}
        self._awaits_token = True

    def before(self, effect: Effect) -> Effect:
        match effect:
            case Send():
                self._counts["requests"] += 1
                self._sent = time.monotonic()
                size = len(effect.content or b"")
                self._tell("request", {"method": effect.method, "path": effect.path, "bytes": size})
                extra: dict[str, str] = {}
                for observer in self.observers:
                    with _ignored():
                        extra.update(observer.headers())
                return replace(effect, headers={**effect.headers, **extra}) if extra else effect
            case Sleep(seconds, "resume"):
                self._counts["resumes"] += 1
                self._tell("resume", {"pause_s": round(seconds, 3)})
            case Sleep(seconds):
                self._counts["retries"] += 1
                self._tell("retry", {"pause_s": round(seconds, 3), "why": effect.why})
            case Emit() if self._awaits_token:
                self._awaits_token = False
                self._tell("first_token", {"seconds": _since(self._began)})
        return effect

    def after(self, effect: Effect, value: object) -> None:
        if isinstance(effect, Send) and isinstance(value, Head):
            request_id = value.headers.get(REQUEST_ID)
            named = {} if request_id is None else {"request_id": request_id}
            self._tell("response", {"status": value.status, "seconds": _since(self._sent), **named})

    def failed(self, effect: Effect, error: DELClientError) -> None:
        if isinstance(effect, Send):
            self._tell("response", {"error": type(error).__name__, "seconds": _since(self._sent)})

    def end(self, outcome: Attributes, error: DELClientError | None) -> None:
        attributes = {**outcome, "seconds": _since(self._began), **self._counts}
        for observer in self.observers:
            with _ignored():
                observer.end(attributes, error)

    def _tell(self, name: str, attributes: Attributes) -> None:
        for observer in self.observers:
            with _ignored():
                observer.event(name, attributes)


def _ignored() -> contextlib.suppress:
    """Suppress an observer's exceptions: they must not fail the call."""
    return contextlib.suppress(Exception)


def _summary(result: object) -> dict[str, str | int | float | bool]:
    """Return the attributes of a result that observers may receive."""
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
