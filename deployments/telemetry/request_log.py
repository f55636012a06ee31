"""Log of a replica as JSON lines (or text), in the file to which Serve writes the replica's log.

With ``telemetry.request_log``, each completion has one line of fields of its ``Observation``, so
nothing derives from a prompt.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Literal

from deployments.telemetry.observation import Observation, elapsed

LogFormat = Literal["json", "text"]

logger = logging.getLogger("deployments.requests")

_FIELDS = "fields"
_COPIED = ["request_id", "code", "variant", "stream", "request_bytes", "prompt_tokens", "output_tokens", "cached_rows"]


def log_request(observation: Observation) -> None:
    """Log a completion that has ended."""
    times = {
        "receive_ms": elapsed(observation.began, observation.received),
        "decode_ms": None if observation.decoded is None else observation.decode_s,
        "queue_ms": elapsed(observation.decoded, observation.first_token),
        "first_token_ms": elapsed(observation.began, observation.first_token),
        "total_ms": elapsed(observation.began, observation.ended),
    }
    fields = {name: getattr(observation, name) for name in _COPIED}
    fields |= {name: None if seconds is None else round(seconds * 1000, 3) for name, seconds in times.items()}
    known = {name: value for name, value in fields.items() if value is not None}
    logger.info("completion %s", " ".join(f"{name}={value}" for name, value in known.items()), extra={_FIELDS: known})


class JsonLines(logging.Formatter):
    """Formatter of JSON lines: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``message``."""

    def __init__(self, replica: str | None = None) -> None:
        super().__init__()
        self._replica = replica

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
        }
        if self._replica is not None:
            line["replica"] = self._replica
        fields = getattr(record, _FIELDS, None)
        if fields is not None:
            line |= {"message": "completion", **fields}
        else:
            line["message"] = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__  # not the message, which could hold anything
        return json.dumps(line, default=str)


def attach(log_format: LogFormat, replica: str | None, *, requests: bool) -> None:
    """Send the loggers under ``deployments`` to Serve's replica log, in this format."""
    ours = logging.getLogger("deployments")
    for handler in list(ours.handlers):
        ours.removeHandler(handler)
    for file in logging.getLogger("ray.serve").handlers:
        name = getattr(file, "baseFilename", None) or getattr(getattr(file, "target", None), "baseFilename", None)
        if name is None:
            continue
        handler = logging.FileHandler(name, encoding="utf-8", delay=True)
        text = logging.Formatter("%(levelname)s %(asctime)s %(name)s %(message)s")
        handler.setFormatter(JsonLines(replica) if log_format == "json" else text)
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = not ours.handlers
    logger.setLevel(logging.INFO if requests else logging.WARNING)
