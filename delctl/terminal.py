"""Terminal output of the commands."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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


def printable(text: str) -> str:
    """Replace control and formatting characters, except line breaks and tabs.

    Generated text is untrusted: it may contain escape sequences, or reverse the writing direction.
    """
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for character in text
    )


def bytes_words(count: int) -> str:
    """Format a size: 912 bytes, 1.4 kB, 19.6 MB (powers of ten)."""
    from rich.filesize import decimal

    return decimal(count)
