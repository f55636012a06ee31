"""Terminal output of the commands."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from del_core.lm.progress import Observer

# The width of a file or a pipe: enough for the widest table.
_PIPE_WIDTH = 110


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console that respects NO_COLOR and COLUMNS; plain text without a terminal.

    With ``quiet`` it writes nothing.
    """
    from rich.console import Console

    made = Console(stderr=stderr, quiet=quiet, highlight=False, emoji=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPE_WIDTH
    return made


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table with headings and a rule; the columns in ``right`` are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def print_json(value: Any) -> None:
    """Print the one JSON document of a command with ``--json``.

    JSON has no infinity: such a number becomes null. On a terminal every other character than ASCII
    is escaped, since generated text is untrusted.
    """
    click.echo(json.dumps(_finite(value), ensure_ascii=sys.stdout.isatty(), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def printable(text: str) -> str:
    """Replace control and formatting characters, except line breaks and tabs.

    Generated text is untrusted: it may contain escape sequences, or reverse the writing direction.
    """
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for character in text
    )


@contextlib.contextmanager
def observed(notes: Console, *, whole: bool = False) -> Iterator[Observer]:
    """Show on ``notes`` how far a command is: a bar with rate and time left.

    Without a terminal there is a line for each step. With ``whole`` the bar is of the whole work,
    and else of the step.
    """
    from del_core.lm.progress import Observer

    if not notes.is_terminal or notes.quiet:
        yield Observer(report=lambda line: notes.print(printable(line), soft_wrap=True))
        return
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{60 * speed:.0%}/min" if speed < 1 / 60 else f"{speed:.1%}/s")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # A step may take minutes; the rate is that of the whole time.
    with Progress(*columns, console=notes, transient=True, speed_estimate_period=float("inf")) as bar:
        task = bar.add_task("starting", total=1.0)

        def report(line: str) -> None:
            if not whole:
                bar.reset(task, total=1.0)
            bar.update(task, description=printable(line))

        yield Observer(report=report, progress=lambda share: bar.update(task, completed=share))


def bytes_words(count: int) -> str:
    """Format a size: 912 bytes, 1.4 kB, 19.6 MB (powers of ten)."""
    from rich.filesize import decimal

    return decimal(count)
