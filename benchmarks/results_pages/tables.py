"""Markdown tables, numbers and the origin of a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Origin", "Table", "epsilon", "interval", "load", "missing", "number", "percent", "table"]

RESULTS = Path(__file__).parents[1] / "results"
Table = Callable[[], str]
"""Makes one table from the committed results."""


def load(name: str) -> Any:
    """Read a committed file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Lay out a Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float, digits: int) -> str:
    """Round half up at the last digit shown, as the reader of the JSON would."""
    return f"{value + 1e-9:,.{digits}f}"


def percent(value: float, digits: int = 0) -> str:
    """Format a share as a percentage."""
    return f"{100 * value + 1e-7:.{digits}f} %"


def interval(values: Sequence[float], form: str = ".3f", scale: float = 1.0) -> str:
    """Format a value with its 95 % interval."""
    value, low, high = (format(scale * one, form) for one in values)
    return f"{value} ({low} to {high})"


def epsilon(row: Mapping[str, Any]) -> str:
    """Format the epsilon of a row, and whether it is pure; nothing without one."""
    if row["epsilon"] is None:
        return ""
    return f"{number(row['epsilon'], 1)}{' (pure)' if row['delta'] == 0 else ''}"


def missing(file: str) -> str:
    """Say how many pieces of a plan a committed file has, and which it lacks."""
    about = load(file)["about"]
    done, names = about["pieces_done"], about["pieces_missing"]
    if not names:
        return f"All {done} pieces of the plan are measured."
    lines = "\n".join(f"- `{name}`" for name in names)
    return f"Measured: {done} of {done + len(names)} pieces of the plan. Not measured:\n\n{lines}"


@dataclass(frozen=True)
class Origin:
    """Where the figures of a page come from; the JSON is asked first."""

    file: str
    date: str = ""
    command: str = ""
    machine: str = ""

    def __call__(self) -> str:
        """Describe the run in one sentence."""
        found = load(self.file)
        about = found if isinstance(found, dict) else {}
        about = {**about, **about["about"]} if isinstance(about.get("about"), dict) else about
        machine = about.get("machine", self.machine)
        if isinstance(machine, dict):
            machine = f"{machine['cores']} cores of {machine['cpu']}, {machine['system']}; {machine['note']}"
        date, command = about.get("date", self.date), about.get("command", self.command)
        lines = [("date", date), ("command", f"`{command}`"), ("machine", machine)]
        lines.append(("figures", f"[{self.file}](../../benchmarks/results/{self.file})"))
        return table(("run", ""), lines)
