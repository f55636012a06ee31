"""How far a command is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console

from del_core.lm.progress import UNOBSERVED, Observer
from delctl.terminal import observed


def shown(terminal: bool, work: Callable[[Observer], None], *, whole: bool) -> str:
    """Return what is written while ``work`` runs."""
    notes = Console(file=io.StringIO(), force_terminal=terminal, width=120, markup=False)
    with observed(notes, whole=whole) as observer:
        work(observer)
    assert isinstance(notes.file, io.StringIO)
    return notes.file.getvalue()


def two_of_four(observer: Observer) -> None:
    observer.step("first [bold]", 0, 4)
    observer.step("third", 2, 4)


def test_without_a_terminal_every_step_is_a_line() -> None:
    assert shown(False, two_of_four, whole=True) == "first [bold]\nthird\n"


def test_a_terminal_shows_the_share_and_the_time_left() -> None:
    # The last state of the bar is drawn when it ends.
    last = shown(True, two_of_four, whole=True)
    assert "third" in last
    assert "50%" in last
    assert "left" in last


def test_a_bar_of_steps_starts_again_with_each() -> None:
    def work(observer: Observer) -> None:
        observer.report("first")
        observer.progress(0.75)
        observer.report("second")

    assert "  0%" in shown(True, work, whole=False).rpartition("second")[2]


def test_nobody_need_listen() -> None:
    two_of_four(UNOBSERVED)


def test_control_characters_of_a_name_are_not_written() -> None:
    assert "\x1b[31m" not in shown(False, lambda observer: observer.report("a\x1b[31mb"), whole=True)
