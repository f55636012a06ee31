"""The log of calls, without anything derived from a prompt.

    DEL_LOG=info      one line for every call
    DEL_LOG=debug     also its requests, responses, retries and resumptions

Lines go to the logger ``client_lib.calls``; with ``DEL_LOG`` also to stderr. The fields of a line
are those of :mod:`client_lib._core.observe`.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping

from client_lib._validation import invalid
from client_lib.errors import DELClientError, printable
from client_lib.options import Attributes

_LOGGER = logging.getLogger("client_lib.calls")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
_numbers = itertools.count(1)


class CallLog:
    """A telemetry hook that writes to the logger. Raises for an unknown ``DEL_LOG``."""

    def __init__(self) -> None:
        wish = os.environ.get("DEL_LOG", "").strip().lower()
        if not wish:
            return
        if wish not in _LEVELS:
            raise invalid("DEL_LOG", f"{', '.join(_LEVELS)} or unset", repr(wish))
        _LOGGER.setLevel(_LEVELS[wish])
        if not _LOGGER.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s del %(message)s"))
            _LOGGER.addHandler(handler)
            _LOGGER.propagate = False  # an application that logs to stderr would show lines twice

    def begin(self, operation: str, attributes: Attributes) -> _Lines | None:
        """Log the beginning of a call."""
        if not _LOGGER.isEnabledFor(logging.INFO):
            return None
        lines = _Lines(next(_numbers), operation)
        lines.event("begin", attributes)
        return lines


class _Lines:
    """The lines of one call, which share its number."""

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
    """Describe an error without its message."""
    parts = {"status": error.status, "code": error.code, "request_id": error.request_id}
    return type(error).__name__ + _words({name: value for name, value in parts.items() if value is not None})


def _words(attributes: Attributes) -> str:
    # A value is cut and kept on one line, because the server chooses request ids.
    return "".join(f" {name}={printable(str(value), limit=128)}" for name, value in attributes.items())
