"""Checks of an installation: what one returns, what it is told, and how all of them are run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

Status = Literal["ok", "warning", "failed"]

LIMIT_S = 60.0
"""Seconds after which a check is given up: a disk or a name server may not answer at all."""


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        status: ``failed`` if something cannot work, ``warning`` if it works worse or may not work.
        finding: what was found, in a sentence without secrets.
        advice: what to do, in a sentence; empty if there is nothing to do.
        name: the check's name, which :func:`run_checks` sets.
    """

    status: Status
    finding: str
    advice: str = ""
    name: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the finding as JSON values."""
        values = asdict(self)
        return {key: values[key] for key in ("name", "status", "finding", "advice")}


@dataclass(frozen=True)
class Subject:
    """What is checked beside the machine: directories and a server, each None if not named."""

    bundle: Path | None = None
    model: Path | None = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    allow_http: bool = False


Check: TypeAlias = Callable[[Subject], Finding]


def ok(finding: str, advice: str = "") -> Finding:
    """Return the finding that all is well."""
    return Finding("ok", finding, advice)


def warning(finding: str, advice: str) -> Finding:
    """Return the finding that something may not work, or works worse than it could."""
    return Finding("warning", finding, advice)


def failed(finding: str, advice: str) -> Finding:
    """Return the finding that something cannot work."""
    return Finding("failed", finding, advice)


def run_checks(checks: Mapping[str, Check], subject: Subject, *, limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Run checks in order and yield a finding for each, whatever the check does.

    A check that raises, or does not end within ``limit_s`` seconds, has failed.
    """
    for name, check in checks.items():
        yield replace(_bounded(check, subject, limit_s), name=name)


def _bounded(check: Check, subject: Subject, limit_s: float) -> Finding:
    found: list[Finding] = []

    def run() -> None:
        try:
            found.append(check(subject))
        except Exception as error:
            found.append(failed(f"The check itself failed: {_reason(error)}.", "Repair that, and run the check again."))

    # A daemon, so that the process can end while the check hangs.
    thread = threading.Thread(target=run, name="check", daemon=True)
    thread.start()
    thread.join(limit_s)
    late = failed(f"The check did not end within {limit_s:g} s.", "See whether a disk or the network does not answer.")
    return found[0] if found else late


def _reason(error: Exception) -> str:
    """Return what is known to hold no secret: the system's words on a file, or the error's type."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return type(error).__name__
