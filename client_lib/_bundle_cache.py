"""The bundle cache: the client part of bundles on disk, one directory per fingerprint.

    <cache>/bundles/<fingerprint>/      manifest.json, table.safetensors, tokenizer.json
    <cache>/servers/<hash of base URL>  the fingerprint that this server handed out last
    <cache>/verified/<fingerprint>      what the files looked like when they were verified

Entries are content-addressed. They are verified when they are stored and whenever their files have changed since, so
a damaged or altered one is found, removed and fetched again, while a start on an unchanged one only maps the table.
Writing goes to a temporary name on the same file system first and is then renamed; several
processes may do so at once, and whoever comes second finds the same content in place. Nothing in the cache is secret,
and all of it may be deleted at any time: open tables stay mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from client_lib._core.verified import VerifiedNotes
from client_lib.errors import BundleInvalid, CacheUnavailable
from del_core.bundle import CLIENT_FILES, ClientBundle, load_client, unpack_client
from del_core.errors import BundleError

__all__ = ["BundleCache", "default_cache_dir", "load_local"]

# Every round lost means that another process changed the entry within the few milliseconds between two system calls.
_ROUNDS = 10
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def default_cache_dir() -> Path:
    """``$DEL_CACHE_DIR``, or ``del-serve`` in the platform's per-user cache directory."""
    if chosen := os.environ.get("DEL_CACHE_DIR"):
        return Path(chosen)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "del-serve"


def load_local(path: Path) -> ClientBundle:
    """The client part of a bundle directory, or of a directory that is a client part. Raises ``BundleInvalid``."""
    client = path / "client"
    try:
        return load_client(client if client.is_dir() else path)
    except BundleError as error:
        raise BundleInvalid(f"bundle {path}: {error}") from error


class BundleCache:
    """The cache at one directory, which is created when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self._bundles = directory / "bundles"
        self._servers = directory / "servers"
        self._verified = VerifiedNotes(directory / "verified", CLIENT_FILES)

    def load(self, fingerprint: str) -> ClientBundle | None:
        """The cached bundle with this fingerprint, or None. A damaged entry is removed."""
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
        """The cached bundle that this server handed out last, or None."""
        try:
            noted = self._note(base_url).read_text("ascii")
        except (OSError, ValueError):
            return None
        return self.load(noted) if _FINGERPRINT.fullmatch(noted) else None

    def store(self, data: bytes, base_url: str) -> ClientBundle:
        """Verify a downloaded client part, put it in the cache and note that this server handed it out.

        Raises :class:`BundleInvalid` if it is damaged and :class:`CacheUnavailable` if it cannot be written.
        """
        with _typed_failures(self._bundles):
            for directory in (self._bundles, self._servers):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for _ in range(_ROUNDS):
                bundle = self._install(data)
                if bundle is not None:
                    self._write_note(base_url, bundle.fingerprint)
                    return bundle
        raise CacheUnavailable(
            f"cache_dir: an entry of {self._bundles} is being changed all the time; "
            "allowed: a directory that only this library writes"
        )

    def _install(self, data: bytes) -> ClientBundle | None:
        """Put a downloaded client part in its place; None if another process took it away at the same moment."""
        working = Path(tempfile.mkdtemp(prefix=".new-", dir=self._bundles))
        try:
            fingerprint = unpack_client(data, working / "client").fingerprint
            # Fails if another process was faster; then what it put there is used, once verified.
            with contextlib.suppress(OSError):
                os.rename(working / "client", self._bundles / fingerprint)
        except BundleError as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from error
            raise BundleInvalid(f"bundle from the server: {error}") from error
        finally:
            shutil.rmtree(working, ignore_errors=True)
        return self.load(fingerprint)

    def _discard(self, entry: Path) -> None:
        """Take an entry away at once, then delete it: others see it whole or not at all."""
        grave = Path(tempfile.mkdtemp(prefix=".old-", dir=self._bundles))
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, grave / "client")
        shutil.rmtree(grave, ignore_errors=True)

    def _note(self, base_url: str) -> Path:
        return self._servers / hashlib.sha256(base_url.encode()).hexdigest()

    def _write_note(self, base_url: str, fingerprint: str) -> None:
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self._servers)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(fingerprint)
            os.replace(name, self._note(base_url))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def _typed_failures(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheUnavailable(
            f"cache_dir: {directory}: {error.strerror or type(error).__name__}; "
            "allowed: a directory that this user can write, with room for the bundle"
        ) from error
