"""Reasons of failures, from texts of Ray: what a person needs of a traceback."""

from __future__ import annotations

import re

_LONGEST = 2000
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = re.compile(r"^(?:Traceback|  File )|\n(?:Traceback|  File )")
# HAProxy begins with notices; the reason is in its alerts.
_ALERT = re.compile(r"^.*?\[ALERT\]\s*\(\d+\) : (?:\[\S+\] )?(.+)$", re.MULTILINE)
_ERROR = re.compile(r"^[\w.]+(?:Error|Exception)(?:\(\w+\))?: (?!Traceback|ray::)(.+)", re.MULTILINE)


def reason_in(text: str) -> str:
    """Return the text without terminal colors; of a traceback, the message of its last error.

    If HAProxy has not started, the reason is what it says itself.
    """
    text = _COLORS.sub("", text).strip()
    if "HAProxy" in text and (alerts := _ALERT.findall(text)):
        return f"HAProxy did not start: {' '.join(dict.fromkeys(alerts))}"[:_LONGEST]
    if _TRACEBACK.search(text) and (errors := _ERROR.findall(text)):
        return str(errors[-1])
    return text if len(text) <= _LONGEST else "..." + text[-_LONGEST:]
