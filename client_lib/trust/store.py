"""Stores of trust records: a file, memory, or an application's own."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from client_lib._validation import NO_JSON, must_be, parse_json
from client_lib.errors import TrustUnavailableError
from client_lib.trust.record import TrustRecord
from del_core.bundle.files import user_config_dir
from del_core.net.fork import renewed_after_fork

_VERSION = 1
_MAX_BYTES = 16 << 20

Update: TypeAlias = Callable[[TrustRecord | None], TrustRecord | None]
"""Returns the new record of a server for its present one; None removes it."""


class TrustStore(Protocol):
    """A store of records by server. Every method may raise ``TrustUnavailableError``."""

    def records(self) -> Mapping[str, TrustRecord]:
        """Return all records, by :func:`client_lib.trust.server_name`."""

    def update(self, server: str, change: Update) -> None:
        """Replace a server's record by what ``change`` returns for it.

        No other update of the store may happen meanwhile. If ``change`` raises, nothing changes.
        """


class MemoryTrustStore:
    """A store in the memory of one process: trust begins anew with every process."""

    def __init__(self) -> None:
        self._records: dict[str, TrustRecord] = {}
        self._lock = threading.Lock()
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    def records(self) -> Mapping[str, TrustRecord]:
        """See ``TrustStore``."""
        return dict(self._records)

    def update(self, server: str, change: Update) -> None:
        """See ``TrustStore``."""
        with self._lock:
            _apply(self._records, server, change)


class FileTrustStore:
    """A store in one JSON file, for the threads and processes of one machine.

    The file is readable by its owner only. Changes hold a lock on a file beside it and are renamed
    into place. A file that cannot be read is an error, never an empty store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)

    def records(self) -> Mapping[str, TrustRecord]:
        """See ``TrustStore``."""
        return self._read()

    def update(self, server: str, change: Update) -> None:
        """See ``TrustStore``. Nothing is written if the record stays the same."""
        with self._failures():
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _locked(self.path.with_name(self.path.name + ".lock")):
                records = self._read()
                before = records.get(server)
                _apply(records, server, change)
                if records.get(server) != before:
                    self._write(records)

    def _read(self) -> dict[str, TrustRecord]:
        with self._failures():
            try:
                with open(self.path, "rb") as file:
                    data = file.read(_MAX_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                return {}
        value: Any = NO_JSON if len(data) > _MAX_BYTES else parse_json(data)
        try:
            if value["version"] == _VERSION:
                return {str(name): TrustRecord.from_json(item) for name, item in value["servers"].items()}
            found = f"version {value['version']}" if type(value["version"]) is int else "another version"
        except (KeyError, TypeError, ValueError, AttributeError):
            found = "another content"
        wanted = f"a trust file of version {_VERSION}"
        advice = "restore it, or delete it to trust every server's next offer"
        raise TrustUnavailableError(f"{must_be(f'trust {self.path}', wanted, found)}; {advice}", field="trust")

    def _write(self, records: Mapping[str, TrustRecord]) -> None:
        content = {"version": _VERSION, "servers": {name: record.to_json() for name, record in records.items()}}
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self.path.parent)  # mode 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1, sort_keys=True, allow_nan=False)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            wanted = "a file that this user can read and write"
            found = f"{self.path} ({error.strerror or type(error).__name__})"
            raise TrustUnavailableError(must_be("trust", wanted, found), field="trust") from error

    def __repr__(self) -> str:
        return f"FileTrustStore({str(self.path)!r})"


def default_trust_file(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the place of ``trust.json`` for a client with this option ``cache_dir``.

    The first that is set of ``cache_dir``, ``$DEL_CONFIG_DIR`` and ``$DEL_CACHE_DIR`` names the
    directory; else it is ``del-serve`` in the user's configuration directory.
    """
    chosen = cache_dir or os.environ.get("DEL_CONFIG_DIR") or os.environ.get("DEL_CACHE_DIR")
    if chosen:
        return Path(chosen) / "trust.json"
    return user_config_dir() / "trust.json"


def _apply(records: dict[str, TrustRecord], server: str, change: Update) -> None:
    record = change(records.get(server))
    if record is None:
        records.pop(server, None)
    else:
        records[server] = record


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system releases if this process ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
