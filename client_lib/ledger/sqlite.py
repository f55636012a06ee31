"""A store in one SQLite file, for the threads and processes of one machine.

Committed data survives a crash of the process and of the system. Every decision is one ``BEGIN
IMMEDIATE`` transaction, so two processes cannot both spend the rest of a budget.

Only the owner may read the files. A file that is deleted or replaced under an open connection would
take spending that nobody counts, so every transaction compares the files with those that were
opened.

Setting the clock forward must not free a budget. Within one boot of the machine time advances by
the boot clock, which nobody can set; across boots it is the maximum of the last time and the time
of day. (A wrong time of day after a boot looks like a machine that was off.)
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from client_lib._validation import must_be
from client_lib.errors import LedgerUnavailableError
from client_lib.ledger.store import Account, Entry

_VERSION = 1
_OWNER_ONLY = 0o600
_IN_MEMORY = ":memory:"  # SQLite's name
_BESIDE = ("-wal", "-shm")  # SQLite's write-ahead log and its index; they exist while a connection is open
# The column "ratio" holds a noise level: an integer, or text for a mechanism that is not binomial.
_SCHEMA = """
CREATE TABLE clock (boot TEXT NOT NULL, boot_s REAL NOT NULL, now_s REAL NOT NULL);
CREATE TABLE spending (
    subject TEXT NOT NULL, end_s REAL NOT NULL, ratio INTEGER NOT NULL, trials INTEGER NOT NULL,
    PRIMARY KEY (subject, end_s, ratio)
) WITHOUT ROWID;
CREATE TABLE draws (
    subject TEXT NOT NULL, id BLOB NOT NULL, end_s REAL NOT NULL, PRIMARY KEY (subject, id)
) WITHOUT ROWID;
"""


class SQLiteStore:
    """A :class:`client_lib.ledger.LedgerStore` in the file ``path``, created if missing.

    The path ``:memory:`` is no file: its spending ends with the process, as for a test.
    ``busy_timeout`` is in seconds. ``erase`` also overwrites deleted data in the file.

    Raises:
        LedgerUnavailableError: the file cannot be opened, is no ledger, has a newer version, or was
            deleted or replaced since it was opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout: float = 10.0) -> None:
        self.path: Path = Path(path)
        self._busy_timeout = busy_timeout
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._inherited: list[sqlite3.Connection | None] = []
        self._opened: Mapping[Path, tuple[int, int]] = {}
        self._closed = False
        with self._held(), self._failures():
            self._open()

    @contextlib.contextmanager
    def account(self, subject: str) -> Iterator[Account]:
        """See ``LedgerStore``."""
        with self._held():
            with self._failures():
                connection = self._open()
            with self._failures(), self._transaction(connection):
                yield _SQLiteAccount(connection, subject, _now(connection))

    def subjects(self) -> Sequence[str]:
        """See ``LedgerStore``."""
        with self._held(), self._failures():
            connection = self._open()
            with self._transaction(connection):
                rows = connection.execute("SELECT subject FROM spending UNION SELECT subject FROM draws ORDER BY 1")
                return [row[0] for row in rows]

    def erase(self, subject: str) -> bool:
        """See ``LedgerStore``."""
        with self._held(), self._failures():
            connection = self._open()
            with self._transaction(connection):
                found = sum(
                    connection.execute(f"DELETE FROM {table} WHERE subject = ?", (subject,)).rowcount
                    for table in ("spending", "draws")
                )
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return found > 0

    def close(self) -> None:
        """See ``LedgerStore``."""
        with self._held():
            connection, self._connection = self._connection, None
            self._closed = True
            if connection is not None:
                connection.close()

    def _held(self) -> threading.Lock:
        """Return this process's lock; after a fork the inherited one may be held forever."""
        if self._pid not in (0, os.getpid()):
            # Neither used nor closed: SQLite's locks and log belong to the parent.
            self._inherited.append(self._connection)
            self._lock, self._connection, self._pid = threading.Lock(), None, 0
        return self._lock

    def _open(self) -> sqlite3.Connection:
        """Return this process's connection."""
        if self._closed:
            raise LedgerUnavailableError(f"ledger: {self.path} has been closed")
        if self._connection is None:
            before = None
            if str(self.path) != _IN_MEMORY:
                _restrict(self.path)
                before = self._opened.get(self.path) or _identity(self.path)
            connection = sqlite3.connect(
                self.path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(connection, self.path)
                if before is not None:
                    beside = [self.path.with_name(self.path.name + suffix) for suffix in _BESIDE]
                    self._opened = {self.path: before, **{path: _identity(path) for path in beside}}
                    self._check_files()
            except BaseException:
                connection.close()
                raise
            self._connection, self._pid = connection, os.getpid()
        return self._connection

    @contextlib.contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Commit durably to the files that were opened, or roll back."""
        with _transaction(connection):
            self._check_files()
            yield
            self._check_files()

    def _check_files(self) -> None:
        """Raise LedgerUnavailableError unless the paths still name the files that were opened."""
        for path, opened in self._opened.items():
            if _identity(path) != opened:
                raise LedgerUnavailableError(
                    f"ledger: {must_be(str(path), 'the file that was opened', 'another one')}; nothing has been sent"
                )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LedgerUnavailableError(f"ledger: {self.path}: {error}; nothing has been sent") from error

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"


class _SQLiteAccount:
    """One subject's rows, inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, subject: str, now: float) -> None:
        self._connection = connection
        self._subject = subject
        self.now = now

    def entries(self) -> Sequence[Entry]:
        rows = self._connection.execute("SELECT end_s, ratio, trials FROM spending WHERE subject = ?", (self._subject,))
        return [Entry(*row) for row in rows]

    def known(self, draws: Collection[bytes]) -> set[bytes]:
        find = "SELECT 1 FROM draws WHERE subject = ? AND id = ?"
        return {draw for draw in draws if self._connection.execute(find, (self._subject, draw)).fetchone()}

    def add(self, entry: Entry, draws: Collection[bytes]) -> None:
        self._connection.execute(
            "INSERT INTO spending VALUES (?, ?, ?, ?) "
            "ON CONFLICT (subject, end_s, ratio) DO UPDATE SET trials = trials + excluded.trials",
            (self._subject, entry.end, entry.level, entry.trials),
        )
        self._connection.executemany(
            "INSERT INTO draws VALUES (?, ?, ?)", [(self._subject, draw, entry.end) for draw in draws]
        )

    def forget_before(self, end: float) -> None:
        for table in ("spending", "draws"):
            self._connection.execute(f"DELETE FROM {table} WHERE subject = ? AND end_s <= ?", (self._subject, end))


def _restrict(path: Path) -> None:
    """Create the file for its owner only, or take the rights of others away.

    SQLite gives its other files the same rights. An existing file is not opened here: closing it
    would drop the locks of every connection of this process to it.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _OWNER_ONLY))
    except FileExistsError:
        for one in (path, *(path.with_name(path.name + suffix) for suffix in _BESIDE)):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE(one.stat().st_mode) & ~_OWNER_ONLY:
                    one.chmod(_OWNER_ONLY)


def _identity(path: Path) -> tuple[int, int]:
    """Return device and inode of a file with one name. Raises LedgerUnavailableError.

    Under a second name SQLite would keep another log beside the same data.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise LedgerUnavailableError(
            f"ledger: {must_be(str(path), 'the file that was opened', 'nothing')}; nothing has been sent"
        ) from None
    if found.st_nlink != 1:
        raise LedgerUnavailableError(
            f"ledger: {must_be(str(path), 'a file with one hard link', str(found.st_nlink))}; nothing has been sent"
        )
    return found.st_dev, found.st_ino


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")
    with _transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise LedgerUnavailableError(
                f"ledger: {must_be(f'the version of {path}', f'at most {_VERSION}', str(version))}"
            )
        if version == 0:
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise LedgerUnavailableError("ledger: " + must_be(str(path), "a ledger's database", "another one"))
            for statement in filter(str.strip, _SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={_VERSION}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit durably, or roll back."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _boot() -> tuple[str, float]:
    """Return an id of this boot of the machine, and the seconds since, sleep included."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, time.clock_gettime(time.CLOCK_BOOTTIME)
    except (OSError, AttributeError):
        return "", math.nan


def _now(connection: sqlite3.Connection) -> float:
    """Advance and return the ledger's clock, in seconds; it never goes back."""
    boot, boot_s = _boot()
    row = connection.execute("SELECT boot, boot_s, now_s FROM clock").fetchone()
    if row is None:
        now = time.time()
    elif row[0] == boot and boot:
        now = row[2] + max(0.0, boot_s - row[1])
    else:
        now = max(row[2], time.time())
    connection.execute("DELETE FROM clock")
    connection.execute("INSERT INTO clock VALUES (?, ?, ?)", (boot, 0.0 if math.isnan(boot_s) else boot_s, now))
    return now
