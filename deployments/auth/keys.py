"""API keys: who calls, told by the SHA-256 of a key; the keys themselves are stored nowhere.

A key is 32 bytes of the system's CSPRNG, so its plain SHA-256 cannot be turned back by guessing and needs no salt. A
name may have several hashes, so that a new key works before the old one is withdrawn. A :class:`KeyRing` is immutable;
:class:`Keys` holds the current one and is given another while requests run.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import ValidationError

from del_core.errors import DelError
from deployments.settings import KeySettings, SettingsError, parse_keys

__all__ = ["PREFIX", "Caller", "InvalidKeyError", "KeyRing", "Keys", "hash_key", "new_key"]

logger = logging.getLogger("deployments.auth.keys")

PREFIX = "del-"
"""What every key begins with, so that scanners for leaked secrets find it."""

_BEARER = re.compile(r"[Bb]earer +([\x21-\x7e]{1,256})")


class InvalidKeyError(DelError):
    """A request has no API key, or one that is not valid here."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of the key, its limits a minute (None is no limit), and the salt of its cached prompts."""

    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    cache_salt: str | None = field(default=None, repr=False)


ANYONE = Caller("anyone")
"""The caller where no keys are asked for."""


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What the configuration holds of a key: ``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys that are valid at one time.

    A presented key is found by a keyed hash of its SHA-256, under a secret of this process, and then compared in
    constant time: how long that takes says nothing about any key, and does not grow with their number.
    """

    def __init__(self, names: Mapping[str, KeySettings]) -> None:
        self._secret = secrets.token_bytes(32)
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        for name, settings in names.items():
            caller = Caller(name, settings.requests_per_minute, settings.tokens_per_minute, _salt(name))
            for value in settings.hashes:
                digest = bytes.fromhex(value.removeprefix("sha256:"))
                self._callers[self._index(digest)] = (digest, caller)

    def __len__(self) -> int:
        return len(self._callers)

    def caller(self, authorization: str | None) -> Caller:
        """The caller of an ``Authorization`` header. Raises InvalidKeyError."""
        match = _BEARER.fullmatch(authorization) if authorization is not None else None
        if match is None:
            raise InvalidKeyError("Authorization: is missing or malformed; Bearer and an API key are required")
        digest = hashlib.sha256(match[1].encode()).digest()
        expected, caller = self._callers.get(self._index(digest), (bytes(32), None))
        if not hmac.compare_digest(digest, expected) or caller is None:
            raise InvalidKeyError("Authorization: the API key is not valid here")
        return caller

    def _index(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()


# One for the life of a process, as are the engine's caches: a changed key ring must not change a name's salt.
_SALT_SECRET = secrets.token_bytes(32)


def _salt(name: str) -> str:
    return hashlib.blake2b(name.encode(), key=_SALT_SECRET, digest_size=16).hexdigest()


class Keys:
    """The current key ring: from the settings, from a file that is looked at again every second, or none at all.

    A file that has become unreadable or malformed is logged and leaves the keys as they were; one that holds other
    keys than before is in force within about a second, and requests that have begun go on.
    """

    LOOK_S = 1.0

    def __init__(self, names: Mapping[str, KeySettings] | None = None, *, file: Path | None = None) -> None:
        """With neither, everyone may call; with no name, nobody. Raises SettingsError if the file is not acceptable."""
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._next_look = 0.0
        self._ring: KeyRing | None = None
        if file is not None:
            self._stamp = _stamp(file)
            self._ring = KeyRing(read_keys(file))
        elif names is not None:
            self._ring = KeyRing(names)

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._ring is not None

    def replace(self, names: Mapping[str, KeySettings]) -> None:
        """Put other keys in force; does nothing where the keys come from a file or none were asked for at the start."""
        if self._file is None and self._ring is not None:
            self._ring = KeyRing(names)

    def caller(self, authorization: str | None) -> Caller:
        """Who calls. Raises InvalidKeyError."""
        if self._file is not None and time.monotonic() >= self._next_look:
            self._look()
        return ANYONE if self._ring is None else self._ring.caller(authorization)

    def _look(self) -> None:
        assert self._file is not None
        self._next_look = time.monotonic() + self.LOOK_S
        stamp = _stamp(self._file)
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._ring = KeyRing(read_keys(self._file))
        except SettingsError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%d keys are in force", len(self._ring))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(file: Path) -> dict[str, KeySettings]:
    """The keys in a YAML file, by name. Raises SettingsError."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"{file}: is not YAML") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: is a {type(values).__name__}; a mapping of names to keys is allowed")
    try:
        return parse_keys(values)
    except ValidationError as error:
        # Not the input: somebody may have put a key there in place of its hash.
        where = "; ".join(".".join(map(str, p["loc"])) + ": " + p["msg"] for p in error.errors(include_input=False))
        raise SettingsError(f"{file}: {where}") from None
