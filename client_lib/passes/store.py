"""Where passes are kept until they are spent."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from client_lib._validation import must_be
from client_lib.errors import PassesUnavailableError

_VERSION = 1
_WAIT_S = 10.0


class PassStore(Protocol):
    """Where a client takes its passes from, from any thread."""

    def take(self) -> bytes:
        """Remove a pass for good and return it. Raises ``PassesUnavailableError``."""


class PassFile:
    """Passes in one SQLite file, for the threads and processes of one machine.

    Only the owner may read the file: whoever has a pass can spend it. A pass is gone from the file
    before it is used, so that none is ever shown twice.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)

    def add(self, passes: Iterable[bytes]) -> None:
        """Add passes. Raises ``PassesUnavailableError``."""
        with self._open(create=True) as connection, connection:
            connection.executemany("INSERT INTO passes (data) VALUES (?)", [(one,) for one in passes])

    def take(self) -> bytes:
        """See ``PassStore``; the oldest pass comes first."""
        with self._open() as connection, connection:
            row = connection.execute(
                "DELETE FROM passes WHERE number = (SELECT min(number) FROM passes) RETURNING data"
            ).fetchone()
        if row is None:
            wanted, found = "a file with a pass that is left", f"{self.path}, which has none"
            raise PassesUnavailableError(f"{must_be('passes', wanted, found)}; get some with an API key")
        return bytes(row[0])

    def __len__(self) -> int:
        """Return how many passes are left. Raises ``PassesUnavailableError``."""
        with self._open() as connection:
            return int(connection.execute("SELECT count(*) FROM passes").fetchone()[0])

    def __bool__(self) -> bool:
        return True  # a store is there, also without passes

    @contextlib.contextmanager
    def _open(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """Open the file for a moment: passes are rarely taken, and forks need no care."""
        try:
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
                self.path.chmod(0o600)  # of a file that was there, too
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WAIT_S)) as connection:
                # What was taken is overwritten, so that the file never tells what was spent.
                connection.execute("PRAGMA secure_delete = ON")
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    (version,) = connection.execute("PRAGMA user_version").fetchone()
                    if create and version == 0:
                        connection.execute("CREATE TABLE passes (number INTEGER PRIMARY KEY, data BLOB NOT NULL)")
                        connection.execute(f"PRAGMA user_version = {_VERSION}")
                    elif version != _VERSION:
                        wanted = f"a file of passes of version {_VERSION}"
                        raise PassesUnavailableError(must_be(f"passes {self.path}", wanted, "another file"))
                yield connection
        except (OSError, sqlite3.Error) as error:
            wanted = "a file of passes that this user can read and write"
            raise PassesUnavailableError(f"{must_be('passes', wanted, str(self.path))} ({error})") from error

    def __repr__(self) -> str:
        return f"PassFile({str(self.path)!r})"
