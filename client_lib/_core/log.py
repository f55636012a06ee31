"""``DEL_LOG``: what the client does, line by line, without anything of what it sends.

    DEL_LOG=info      one line for every call
    DEL_LOG=debug     besides, its requests, answers, retries and resumptions

Lines go to the logger ``client_lib.calls``; with ``DEL_LOG`` also to stderr. Which fields a line may hold is decided by
:mod:`client_lib._core.observe`: sizes, times, statuses, names of errors, the server's request ids.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping

from client_lib._core.observe import Attributes
from client_lib._validation import invalid
from client_lib.errors import DELClientError

__all__ = ["CallLog"]

_LOGGER = logging.getLogger("client_lib.calls")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
_numbers = itertools.count(1)


class CallLog:
    """A :class:`client_lib._core.observe.TelemetryHook` that writes to the logger. Raises for an unknown
    ``DEL_LOG``."""

    def __init__(self) -> None:
        wish = os.environ.get("DEL_LOG", "").strip().lower()
        if not wish:
            return
        if wish not in _LEVELS:
            raise invalid("DEL_LOG", repr(wish), f"{', '.join(_LEVELS)}, or unset")
        _LOGGER.setLevel(_LEVELS[wish])
        if not _LOGGER.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s del %(message)s"))
            _LOGGER.addHandler(handler)
            _LOGGER.propagate = False  # or an application that logs to stderr too would show every line twice

    def begin(self, operation: str, attributes: Attributes) -> _Lines | None:
        """A call begins."""
        if not _LOGGER.isEnabledFor(logging.INFO):
            return None
        lines = _Lines(next(_numbers), operation)
        lines.event("begin", attributes)
        return lines


class _Lines:
    """The lines of one call, which its number holds together."""

    def __init__(self, number: int, operation: str) -> None:
        self._name = f"#{number} {operation}"

    def headers(self) -> Mapping[str, str]:
        return {}

    def event(self, name: str, attributes: Attributes) -> None:
        _LOGGER.debug("%s: %s%s", self._name, name, _words(attributes))

    def end(self, attributes: Attributes, error: DELClientError | None) -> None:
        said = "done" if error is None else f"failed {_failure(error)}"
        _LOGGER.info("%s: %s%s", self._name, said, _words(attributes))


def _failure(error: DELClientError) -> str:
    """An error by its kind and what the server called it; the message stays with the exception."""
    parts = {"status": error.status, "code": error.code, "request_id": error.request_id}
    return type(error).__name__ + _words({name: value for name, value in parts.items() if value is not None})


def _words(attributes: Attributes) -> str:
    return "".join(f" {name}={_value(value)}" for name, value in attributes.items())


def _value(value: object) -> str:
    """On one line and of bounded length, whatever a server has called its request."""
    return "".join(character if character.isprintable() else "?" for character in str(value)[:128])
