"""Log of a replica as JSON lines (or text), in the file to which Serve writes the replica's log.

With ``telemetry.request_log``, each completion has one line: id, variant, code, sizes and times.
These are the fields of :class:`deployments.telemetry.observation.Observation`, so nothing derives
from a prompt.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Literal

from deployments.telemetry.observation import Observation

LogFormat = Literal["json", "text"]

logger = logging.getLogger("deployments.requests")

_FIELDS = "fields"


def _milliseconds(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else round((later - earlier) * 1000, 3)


def log_request(observation: Observation) -> None:
    """Log a completion that has ended."""
    fields = {
        "request_id": observation.request_id,
        "code": observation.code,
        "variant": observation.variant,
        "stream": observation.stream,
        "request_bytes": observation.request_bytes,
        "prompt_tokens": observation.prompt_tokens,
        "output_tokens": observation.output_tokens,
        "cached_rows": observation.cached_rows,
        "receive_ms": _milliseconds(observation.received, observation.began),
        "decode_ms": None if observation.decoded is None else round(observation.decode_s * 1000, 3),
        "queue_ms": _milliseconds(observation.first_token, observation.decoded),
        "first_token_ms": _milliseconds(observation.first_token, observation.began),
        "total_ms": _milliseconds(observation.ended, observation.began),
    }
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
        handler.setFormatter(
            JsonLines(replica)
            if log_format == "json"
            else logging.Formatter("%(levelname)s %(asctime)s %(name)s %(message)s")
        )
        ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = not ours.handlers
    logger.setLevel(logging.INFO if requests else logging.WARNING)
