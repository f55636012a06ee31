"""Reports of work that takes long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["UNOBSERVED", "Observer"]


@dataclass(frozen=True)
class Observer:
    """Callbacks of work that takes long; by default nobody is told.

    Attributes:
        report: gets a line at the start of every step.
        progress: gets the share, 0 to 1, that is done: of the step, or of the whole work where the
            function says so.
    """

    report: Callable[[str], None] = lambda line: None
    progress: Callable[[float], None] = lambda share: None

    def step(self, line: str, done: int, total: int) -> None:
        """Report a step of a work of ``total`` steps of which ``done`` are done."""
        self.report(line)
        self.progress(done / total)


UNOBSERVED: Final = Observer()
"""Tells nobody."""
