"""The record of one key's passes that were given out and spent, in a SQLite file beside the key.

A pass is spent once, so its random number stays in the file. What was given to whom is counted by
name and day: the file never says which passes those were, since nobody knows. It is made together
with the key and never by a server, so that a server which does not find it spends nothing, in place
of everything again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from del_core.errors import DelError

DAY_S = 86_400

_VERSION = 1
_SCHEMA = """
CREATE TABLE spent (nonce BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE given (day INTEGER NOT NULL, name TEXT NOT NULL, passes INTEGER NOT NULL, PRIMARY KEY (day, name));
"""


class PassLedgerError(DelError):
    """The record of passes cannot be read or written, so nothing can be spent."""


def ledger_path(key_file: Path) -> Path:
    """Return the place of the record beside the file of the issuer's key."""
    return key_file.with_name(key_file.name + ".spent")


class PassLedger:
    """The record in the file ``path``; used by one process, from one thread at a time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open a record. Raises PassLedgerError."""
        self._clock = clock
        try:
            # Read and write, but not create.
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error as error:
            raise PassLedgerError(f"{path} must be a file of delctl keys passes, got {error}") from None
        if version != _VERSION:
            raise PassLedgerError(f"{path} must be a record of passes of version {_VERSION}, got another")

    @staticmethod
    def create(path: Path) -> None:
        """Make a new, empty record that only its owner can read. Raises FileExistsError."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(path)
        try:
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")
        finally:
            connection.close()

    def spend(self, nonce: bytes) -> bool:
        """Spend a pass, durably; return False if it was spent before. Raises PassLedgerError."""
        try:
            row = self._connection.execute("INSERT OR IGNORE INTO spent VALUES (?)", (nonce,))
        except sqlite3.Error as error:
            raise PassLedgerError(f"record of passes: {error}") from None
        return row.rowcount == 1

    def give(self, name: str, limit: int, count: int) -> bool:
        """Count ``count`` passes for a name, or return False if those are too many for today.

        Raises PassLedgerError.
        """
        today = int(self._clock() // DAY_S)
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                (latest,) = connection.execute("SELECT coalesce(max(day), 0) FROM given").fetchone()
                day = max(latest, today)  # a clock that is set back does not renew a quota
                connection.execute("DELETE FROM given WHERE day < ?", (day,))
                row = connection.execute(
                    "INSERT INTO given VALUES (?, ?, ?) ON CONFLICT (day, name) DO UPDATE "
                    "SET passes = passes + excluded.passes WHERE passes + excluded.passes <= ?",
                    (day, name, count, limit),
                )
                is_given = count <= limit and row.rowcount == 1
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT" if is_given else "ROLLBACK")
        except sqlite3.Error as error:
            raise PassLedgerError(f"record of passes: {error}") from None
        return is_given

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
