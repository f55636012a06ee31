"""The bundle cache: the client parts of bundles on disk, one directory per fingerprint.

    <cache>/bundles/<fingerprint>/      the files of the client part
    <cache>/servers/<hash of base URL>  the last fingerprint from this server
    <cache>/verified/<fingerprint>      the state of the files when they were verified

Entries are verified when they are stored, and again when their files have changed; a damaged entry
is removed and fetched again. Files are renamed into place, so several processes may write at once.
The cache holds no secrets, and may be deleted at any time: open tables stay mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from client_lib._validation import must_be
from client_lib.errors import BundleInvalidError, CacheUnavailableError
from del_core.bundle import ClientBundle, Manifest, archive_manifest, load_client, unpack_client
from del_core.errors import BundleError

# A round is lost if another process changes the entry between two system calls.
_ROUNDS = 10
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
CLOCK_TICK_NS = 2_000_000_000
"""Files that changed within this time are not noted as verified."""


def load_local(path: Path) -> ClientBundle:
    """Load a bundle directory, or a client part. Raises ``BundleInvalidError``."""
    client = path / "client"
    try:
        return load_client(client if client.is_dir() else path)
    except BundleError as error:
        raise BundleInvalidError(f"bundle {path}: {error}") from error


class BundleCache:
    """The cache in one directory, which is created when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._bundles = directory / "bundles"
        self._servers = directory / "servers"
        self._verified = VerifiedNotes(directory / "verified")

    def load(self, fingerprint: str) -> ClientBundle | None:
        """Return the cached bundle, or None. A damaged entry is removed."""
        entry = self._bundles / fingerprint
        if not entry.is_dir():
            return None
        state = self._verified.state(entry)
        known = self._verified.holds(fingerprint, state)
        try:
            bundle = load_client(entry, verify=not known)
        except (BundleError, OSError):
            bundle = None
        if bundle is not None and bundle.fingerprint == fingerprint:
            if not known:
                self._verified.write(fingerprint, state)
            return bundle
        with _typed_failures(self._bundles):
            self._discard(entry)
        return None

    def load_last(self, base_url: str) -> ClientBundle | None:
        """Return the cached bundle that this server sent last, or None."""
        try:
            noted = self._note(base_url).read_text("ascii")
        except (OSError, ValueError):
            return None
        return self.load(noted) if _FINGERPRINT.fullmatch(noted) else None

    def store(self, data: bytes, base_url: str, *, check: Callable[[Manifest], object] | None = None) -> ClientBundle:
        """Verify a downloaded client part, store it, and note its server.

        ``check`` may refuse the manifest by an exception, before the rest is read or stored. Raises
        ``BundleInvalidError`` or ``CacheUnavailableError``.
        """
        if check is not None:
            try:
                manifest = archive_manifest(data)
            except BundleError as error:
                raise BundleInvalidError(f"bundle from the server: {error}") from error
            check(manifest)
        with _typed_failures(self._bundles):
            for directory in (self._bundles, self._servers):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for _ in range(_ROUNDS):
                bundle = self._install(data)
                if bundle is not None:
                    _replace(self._note(base_url), bundle.fingerprint)
                    return bundle
        raise CacheUnavailableError(
            must_be("cache_dir", "a directory that only this library writes", f"constant changes in {self._bundles}")
        )

    def _install(self, data: bytes) -> ClientBundle | None:
        """Move a client part into place; return None if another process removes it meanwhile."""
        working = Path(tempfile.mkdtemp(prefix=".new-", dir=self._bundles))
        try:
            fingerprint = unpack_client(data, working / "client").fingerprint
            # Fails if another process was faster; its entry is used then, once verified.
            with contextlib.suppress(OSError):
                os.rename(working / "client", self._bundles / fingerprint)
        except BundleError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise BundleInvalidError(f"bundle from the server: {error}") from error
        finally:
            shutil.rmtree(working, ignore_errors=True)
        return self.load(fingerprint)

    def _discard(self, entry: Path) -> None:
        """Rename an entry, then delete it: other processes see it whole or not at all."""
        grave = Path(tempfile.mkdtemp(prefix=".old-", dir=self._bundles))
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, grave / "client")
        shutil.rmtree(grave, ignore_errors=True)

    def _note(self, base_url: str) -> Path:
        return self._servers / hashlib.sha256(base_url.encode()).hexdigest()


@contextlib.contextmanager
def _typed_failures(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        wanted = "a directory that this user can write, with room for the bundle"
        found = f"{directory} ({error.strerror or type(error).__name__})"
        raise CacheUnavailableError(must_be("cache_dir", wanted, found)) from error


class VerifiedNotes:
    """The notes of verified entries, so that a start need not read a table again.

    A note is the file system's record of every file of an entry before its verification: device,
    inode, size, modification and change time. The kernel advances the change time with every write
    or replacement, so an entry with the same record has the same bytes. Clocks of file systems are
    coarse, so files younger than two seconds are not noted. A note does not show bits lost by the
    medium, and a user who may write to the cache could forge one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def state(self, entry: Path) -> str | None:
        """Return the file system's record of an entry, or None if it cannot be read."""
        try:
            found = {name: os.stat(entry / name, follow_symlinks=False) for name in sorted(os.listdir(entry))}
        except OSError:
            return None
        return json.dumps(
            {name: [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in found.items()}
        )

    def holds(self, fingerprint: str, state: str | None) -> bool:
        """Return whether this state of the entry was verified."""
        try:
            return state is not None and (self._directory / fingerprint).read_text("ascii") == state
        except (OSError, ValueError):
            return False

    def write(self, fingerprint: str, state: str | None) -> None:
        """Note an entry as verified; ``state`` was taken before. A failure to write is ignored."""
        if (
            state is None
            or max((entry[4] for entry in json.loads(state).values()), default=0) > time.time_ns() - CLOCK_TICK_NS
        ):
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            _replace(self._directory / fingerprint, state)


def _replace(path: Path, text: str) -> None:
    """Write a file under a temporary name, and rename it."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
