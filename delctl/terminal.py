"""What the commands share when they write to a terminal."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["bytes_words", "console", "plain_table", "printable"]

# A terminal says how wide it is; a file or a pipe does not, and gets room enough for the widest table.
_PIPE_WIDTH = 110


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that respects NO_COLOR and COLUMNS and, where nobody watches, writes plain text without escapes.

    With ``quiet`` it writes nothing at all.
    """
    from rich.console import Console

    made = Console(stderr=stderr, quiet=quiet, highlight=False, emoji=False, markup=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _PIPE_WIDTH
    return made


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table with headings, a rule and nothing else; the columns named in ``right`` hold numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def printable(text: str) -> str:
    """Text without control and formatting characters, line breaks and tabs excepted.

    What a language model writes is not to be trusted with a terminal: it may hold escape sequences, or characters that
    reverse the direction of writing.
    """
    return "".join(
        character if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs") else "\ufffd"
        for character in text
    )


def bytes_words(count: int) -> str:
    """A size as people read it: 912 B, 1.4 kB, 19.6 MB (powers of ten)."""
    if count < 1000:
        return f"{count} B"
    for unit, size in (("kB", 1e3), ("MB", 1e6)):
        if count < 1000 * size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"
