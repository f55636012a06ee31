"""Logs as JSON lines, and metrics for Prometheus. Neither has text, names or ids in the clear."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from redis.exceptions import RedisError

from client_lib import DELClientError

LOG = logging.getLogger("mobile_backend")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.messages = Counter(
            "backend_messages", "Messages by plan and outcome.", ["plan", "outcome"], registry=registry
        )
        self.private_tokens = Counter(
            "backend_private_tokens", "Private tokens of answered messages.", ["plan"], registry=registry
        )
        self.left_out = Counter(
            "backend_turns_left_out", "Turns of history that were not sent.", ["plan"], registry=registry
        )
        self.in_progress = Gauge(
            "backend_messages_in_progress", "Messages that wait or are answered.", registry=registry
        )
        self.first_text = Histogram(
            "backend_first_text_seconds",
            "From the message to the answer's first text, the wait for earlier messages included.",
            buckets=_SECONDS,
            registry=registry,
        )


class JSONFormatter(logging.Formatter):
    """Formats a record and its ``fields`` as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Of an exception: type and places; most texts may quote input."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)[-5:]
            line["exception"] = type(error).__name__
            if isinstance(error, DELClientError | RedisError):  # these never quote a prompt
                line["reason"] = str(error)
            line["places"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        return json.dumps(line)


def log(event: str, *, level: int = logging.INFO, error: Exception | None = None, **fields: Any) -> None:
    """Write one line."""
    LOG.log(level, event, extra={"fields": fields}, exc_info=error)


def configure_logging() -> None:
    """Send everything, uvicorn's lines included, to standard error as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
