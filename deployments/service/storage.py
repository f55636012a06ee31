"""Bundles and base models in object storage or on volumes, by URL: ``s3://bucket/bundles/v3``.

A node copies a directory into its cache once and verifies it there before it has a name that others
use: a bundle by the checksums of its manifest, a base model by the checksum in the bundle. Only the
files that a bundle lists, and files of a model that hold no code, are copied; nothing is unpickled.
Credentials are those that fsspec finds in the environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from del_core.bundle import BaseModel, checksum_model, load_bundle
from del_core.bundle.files import install, user_cache_dir
from del_core.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from del_core.bundle.signature import SIGNATURE
from del_core.errors import DelError

logger = logging.getLogger("deployments.service.storage")

PROTOCOLS = ("file", "s3", "gs", "abfs", "memory")
"""Protocols of fsspec. ``s3``, ``gs`` and ``abfs`` need s3fs, gcsfs and adlfs."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
# Weights, configuration and tokenizer: no format that can hold code which loading would run.
_MODEL_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".txt")
_PARALLEL = 8
_WORDS = {FileNotFoundError: "no such file or directory", PermissionError: "no permission"}


class StorageError(DelError):
    """A bundle or model cannot be read from storage, or is not what it has to be."""


def is_url(place: str) -> bool:
    """Return whether a place is a URL and no path of this machine."""
    return "://" in place


def check_url(field: str, place: str, *, pinned: bool) -> None:
    """Raise ValueError, which names the field, for a URL that cannot be read.

    Args:
        pinned: whether ``#`` and a fingerprint may follow.
    """
    if not is_url(place):
        return
    parts = urlsplit(place)
    shown = f"{parts.scheme}://..."  # the rest may hold credentials
    if parts.scheme not in PROTOCOLS:
        raise ValueError(f"{field} must be a path or a URL of {', '.join(PROTOCOLS)}, got {shown}")
    if "@" in parts.netloc or parts.query:
        raise ValueError(f"{field} must be a URL without credentials and query, got {shown}")
    if parts.fragment and not (pinned and _FINGERPRINT.fullmatch(parts.fragment)):
        wanted = "a fingerprint, 64 hexadecimal digits, or nothing" if pinned else "nothing"
        raise ValueError(f"{field} must be a URL with {wanted} behind #, got {place.partition('#')[2]}")


@dataclass(frozen=True)
class _Directory:
    """A directory in storage; errors name it by its URL."""

    url: str
    root: str
    system: Any

    @classmethod
    def at(cls, place: str) -> _Directory:
        import fsspec

        url = place.partition("#")[0].rstrip("/")
        with _reading(url):
            system, root = fsspec.core.url_to_fs(url)
        return cls(url, root, system)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file directly inside."""
        with _reading(self.url):
            self.system.invalidate_cache()
            entries = self.system.ls(self.root, detail=True)
        return {one["name"].rpartition("/")[2]: one["size"] for one in entries if one["type"] == "file"}

    def read(self, name: str, most: int) -> bytes:
        """Return the bytes of a file of at most ``most`` bytes."""
        with _reading(f"{self.url}/{name}"), self.system.open(f"{self.root}/{name}", "rb") as file:
            data: bytes = file.read(most + 1)
        if len(data) > most:
            raise StorageError(f"{self.url}/{name} must have at most {most} bytes, got more")
        return data

    def copy(self, names: list[str], target: Path) -> None:
        """Copy files, several at a time, into the directory ``target``."""

        def copy(name: str) -> None:
            (target / name).parent.mkdir(exist_ok=True)
            with _reading(f"{self.url}/{name}"):
                self.system.get_file(f"{self.root}/{name}", str(target / name))

        with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
            list(pool.map(copy, names))


@contextlib.contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn any failure of a storage's library into a StorageError; its text may hold secrets."""
    try:
        yield
    except ImportError as error:
        said = str(error).strip() or error.name
        raise StorageError(f"{url} needs a package of the extra del-serve[storage]: {said}") from None
    except Exception as error:  # each library has errors of its own
        found = next((words for kind, words in _WORDS.items() if isinstance(error, kind)), type(error).__name__)
        raise StorageError(f"{url} must be readable, got {found}") from None


def check_bundle(place: str) -> Manifest:
    """Return the manifest of a bundle in storage. Raises StorageError if it cannot be used."""
    directory, fingerprint = _Directory.at(place), place.partition("#")[2]
    name = f"{directory.url}/{MANIFEST}"
    try:
        manifest = parse_manifest(directory.read(MANIFEST, MAX_MANIFEST_BYTES), name, server=True)
    except DelError as error:
        raise StorageError(str(error)) from None
    if fingerprint not in ("", manifest.fingerprint):
        raise StorageError(f"{directory.url} must be the bundle {fingerprint}, got {manifest.fingerprint}")
    return manifest


def check_model(place: str) -> list[str]:
    """Return the names of a model's files in storage. Raises StorageError if there is no model."""
    directory = _Directory.at(place)
    names = sorted(name for name in directory.sizes() if name.endswith(_MODEL_SUFFIXES))
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise StorageError(f"{directory.url} must hold config.json and *.safetensors, got {', '.join(names) or 'none'}")
    return names


def fetch_bundle(place: str, cache: Path | None = None) -> Path:
    """Return a verified copy of a bundle on this machine.

    The manifest is read every time. If its fingerprint is in the cache, nothing else is.

    Args:
        cache: directory of the copies; None for the user's.

    Raises:
        StorageError: the bundle cannot be read, or is damaged.
    """
    manifest, directory = check_bundle(place), _Directory.at(place)
    server = manifest.server
    assert server is not None

    def fill(target: Path) -> None:
        names = [f"client/{name}" for name in manifest.client_files]
        if SIGNATURE in _Directory.at(f"{directory.url}/client").sizes():
            names.append(f"client/{SIGNATURE}")
        names += [f"server/{name}" for name in server.files]
        directory.copy([MANIFEST, *names], target)
        try:
            found = load_bundle(target).fingerprint
        except DelError as error:
            raise StorageError(f"{directory.url}/{error}") from None
        if found != manifest.fingerprint:
            raise StorageError(f"{directory.url} must not change while it is copied; deploy again")

    return _cached(directory.url, "bundles", manifest.fingerprint, fill, cache)


def fetch_model(place: str, expected: BaseModel, cache: Path | None = None) -> Path:
    """Return a verified copy of a base model on this machine; arguments as :func:`fetch_bundle`.

    Raises:
        StorageError: the model cannot be read, or is another one.
    """
    directory = _Directory.at(place)

    def fill(target: Path) -> None:
        directory.copy(check_model(place), target)
        if (found := checksum_model(target)) != expected.sha256:
            raise StorageError(
                f"{directory.url} must have the checksum {expected.sha256} of {expected.name}, for which the bundle "
                f"was made, got {found}"
            )

    return _cached(directory.url, "models", expected.sha256, fill, cache)


def _cached(url: str, kind: str, key: str, fill: Callable[[Path], None], cache: Path | None) -> Path:
    """Return the directory of a verified copy; one process of the machine makes it."""
    folder = (cache or user_cache_dir()) / "fetched" / kind
    target = folder / key
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / f".{key}.lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} must be writable, got {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            began = time.monotonic()
            install(target, fill)
            size = sum(file.stat().st_size for file in target.rglob("*")) / 1e6
            logger.info("copied and verified %s (%.1f MB) in %.1f s", url, size, time.monotonic() - began)
    finally:
        os.close(lock)
    return target
