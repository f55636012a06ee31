"""Files and directories of a bundle: verified reading, atomic writing."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from del_core._json import canonical
from del_core.bundle.manifest import MANIFEST, FileEntry
from del_core.errors import BundleError


def user_cache_dir() -> Path:
    """Return ``$DEL_CACHE_DIR``, or ``del-serve`` in the user's cache directory."""
    if chosen := os.environ.get("DEL_CACHE_DIR"):
        return Path(chosen)
    return _user_directory("Caches", "LOCALAPPDATA", "Local", "XDG_CACHE_HOME", ".cache")


def user_config_dir() -> Path:
    """Return ``del-serve`` in the user's configuration directory."""
    return _user_directory("Application Support", "APPDATA", "Roaming", "XDG_CONFIG_HOME", ".config")


def _user_directory(library: str, windows: str, app_data: str, unix: str, hidden: str) -> Path:
    """Return the program's directory, by the name below Library, the variable and name on Windows,
    and the variable and name elsewhere."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / library
    elif sys.platform == "win32":
        base = Path(os.environ.get(windows) or Path.home() / "AppData" / app_data)
    else:
        base = Path(os.environ.get(unix) or Path.home() / hidden)
    return base / "del-serve"


def check_listing(directory: Path, name: str, allowed: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise BundleError unless a directory has exactly these entries; errors call it ``name``.

    It may have those of ``optional`` besides.
    """
    try:
        found = set(os.listdir(directory))
    except OSError as error:
        where = name or str(directory)
        raise BundleError(where, f"must be a directory that can be listed, got {error.strerror}") from None
    prefix, listed = f"{name}/" if name else "", ", ".join(sorted(allowed))
    missing = sorted(set(allowed) - found)
    if missing:
        others = ", ".join(sorted(set(allowed) - {missing[0]}))
        raise BundleError(prefix + missing[0], f"must be present beside {others}, got no such file in {directory}")
    extra = sorted(found - {*allowed, *optional})
    if extra:
        where = prefix + ascii(extra[0])[1:-1]
        raise BundleError(where, f"must be absent: only {listed} belong here, got this file")


@contextmanager
def opened(path: Path, name: str) -> Iterator[BufferedReader]:
    """Open a regular file, no link or device, for reading; errors call it ``name``."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        found = "a symbolic link" if path.is_symlink() else error.strerror
        raise BundleError(name, f"must be a regular file, got {found}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(name, "must be a regular file, got another kind")
    with open(descriptor, "rb") as file:
        try:
            yield file
        except OSError as error:
            raise BundleError(name, f"must be readable, got {error.strerror}") from error


def read_small(path: Path, name: str, most: int) -> bytes:
    """Return the bytes of a file of at most ``most`` bytes; a larger one is not read."""
    with opened(path, name) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise BundleError(name, f"must have at most {most} bytes, got {size}")
        return file.read(most)


def check_entry(file: BufferedReader, name: str, entry: FileEntry, *, digest: bool) -> None:
    """Compare an open file's size and, on demand, its SHA-256 with the manifest's entry."""
    size = os.fstat(file.fileno()).st_size
    if size != entry.size:
        raise BundleError(name, f"must have the {entry.size} bytes of the manifest, got {size}")
    file.seek(0)
    if digest and (found := sha256_of(file)) != entry.sha256:
        message = f"must have the SHA-256 {entry.sha256} of the manifest, got {found}: the file was altered"
        raise BundleError(name, message)


def sha256_of(file: BufferedReader) -> str:
    """Return the SHA-256, in hexadecimal, of an open file from its position on."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_model(path: str | os.PathLike[str]) -> str:
    """Return the checksum of a Hugging Face model directory.

    It is the SHA-256 of the canonical JSON {file name: SHA-256} of config.json and every
    *.safetensors, which may be links into a cache. Raises BundleError if one cannot be read.
    """
    directory = Path(path)
    names = ["config.json", *sorted(entry.name for entry in directory.glob("*.safetensors"))]
    if len(names) == 1:
        raise BundleError(str(directory), "must be a model directory, got no *.safetensors file")
    digests: dict[str, str] = {}
    for name in names:
        try:
            with open(directory / name, "rb") as file:
                digests[name] = sha256_of(file)
        except OSError as error:
            raise BundleError(str(directory / name), f"must be readable, got {error.strerror}") from None
    return hashlib.sha256(canonical(digests)).hexdigest()


def write_file(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def install(target: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Make the directory ``target`` atomically: ``fill`` writes into a new one beside it.

    An existing ``target`` is refused or, with ``overwrite``, replaced if it is a bundle. That takes
    two renames; a crash between them leaves the old bundle beside ``target`` under a name that
    begins with a dot.
    """
    target = Path(os.path.abspath(target))
    if os.path.lexists(target):
        if not overwrite:
            raise BundleError(str(target), "must not exist without overwrite=True, got an existing path")
        if not (target / MANIFEST).is_file():
            raise BundleError(str(target), f"must be a bundle to be replaced, got a path without {MANIFEST}")
    token = secrets.token_hex(8)
    fresh = target.with_name(f".{target.name}.{token}.new")
    aside = target.with_name(f".{target.name}.{token}.old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        fill(fresh)
        for directory in [*(path for path in fresh.iterdir() if path.is_dir()), fresh]:
            _sync(directory)
        if overwrite and os.path.lexists(target):
            os.rename(target, aside)
            try:
                os.rename(fresh, target)
            except OSError:
                os.rename(aside, target)
                raise
        else:
            os.rename(fresh, target)
        _sync(target.parent)
    except OSError as error:
        raise BundleError(str(target), f"must be writable, got {error.strerror}") from error
    finally:
        for path in (fresh, aside):
            if path.is_symlink():
                with suppress(OSError):
                    path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Flush a directory's entries to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
