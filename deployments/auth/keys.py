"""Authentication of callers by API keys, of which only the SHA-256 is stored.

A key is 32 bytes of the system's CSPRNG, so its plain SHA-256 cannot be inverted by guessing and
needs no salt.
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

from pydantic import ValidationError

from del_core.errors import DelError
from deployments.sections import APIKey, SettingsError, format_validation_error, parse_keys, read_yaml

logger = logging.getLogger("deployments.auth.keys")

PREFIX = "del-"
"""Prefix of every key, so that secret scanners recognize it."""

_BEARER = re.compile(r"[Bb]earer +([\x21-\x7e]{1,256})")


class InvalidKeyError(DelError):
    """A request has no valid API key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Authenticated caller: name, limits per minute (None: unlimited), salt of cached prompts, and
    the number of passes that it gets each day (None: none)."""

    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    cache_salt: str | None = field(default=None, repr=False)
    passes_per_day: int | None = None


ANYONE = Caller("anyone")


def new_key() -> str:
    """Return a new key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return the form of a key in the configuration: ``sha256:`` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """Immutable set of valid keys.

    A presented key is looked up by a keyed hash of its SHA-256, under a secret of this process, and
    then compared in constant time: the time reveals nothing about any key.
    """

    def __init__(self, names: Mapping[str, APIKey]) -> None:
        self._secret = secrets.token_bytes(32)
        self._callers: dict[bytes, tuple[bytes, Caller]] = {}
        for name, settings in names.items():
            caller = Caller(
                name,
                settings.requests_per_minute,
                settings.tokens_per_minute,
                _salt(name),
                settings.passes_per_day,
            )
            for value in settings.hashes:
                digest = bytes.fromhex(value.removeprefix("sha256:"))
                self._callers[self._index(digest)] = (digest, caller)

    def __len__(self) -> int:
        return len(self._callers)

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller of an ``Authorization`` header. Raises InvalidKeyError."""
        match = _BEARER.fullmatch(authorization) if authorization is not None else None
        if match is None:
            raise InvalidKeyError("Authorization must be Bearer and an API key")
        digest = hashlib.sha256(match[1].encode()).digest()
        expected, caller = self._callers.get(self._index(digest), (bytes(32), None))
        if not hmac.compare_digest(digest, expected) or caller is None:
            raise InvalidKeyError("Authorization must hold an API key that is valid here")
        return caller

    def _index(self, digest: bytes) -> bytes:
        return hashlib.blake2b(digest, key=self._secret, digest_size=16).digest()


# Constant in a process, like the engine's cache: a new key ring must not change the salt of a name.
_SALT_SECRET = secrets.token_bytes(32)


def _salt(name: str) -> str:
    return hashlib.blake2b(name.encode(), key=_SALT_SECRET, digest_size=16).hexdigest()


class Keys:
    """Current key ring: from the settings, from a file, or none.

    A changed file takes effect within about a second. If it becomes unreadable or malformed, an
    error is logged and the keys stay unchanged.
    """

    CHECK_S = 1.0

    def __init__(self, names: Mapping[str, APIKey] | None = None, *, file: Path | None = None) -> None:
        """Admit all clients without arguments, none with empty ``names``. Raises SettingsError."""
        self._file = file
        self._stamp: tuple[int, int, int] | None = None
        self._next_check = 0.0
        self._ring: KeyRing | None = None
        if file is not None:
            self._stamp = _stamp(file)
            self._ring = KeyRing(read_keys(file))
        elif names is not None:
            self._ring = KeyRing(names)

    def replace(self, names: Mapping[str, APIKey]) -> None:
        """Replace the keys, unless they come from a file or the server has none."""
        if self._file is None and self._ring is not None:
            self._ring = KeyRing(names)

    def caller(self, authorization: str | None) -> Caller:
        """Return the caller of a request. Raises InvalidKeyError."""
        if self._file is not None and time.monotonic() >= self._next_check:
            self._check_file()
        return ANYONE if self._ring is None else self._ring.caller(authorization)

    def _check_file(self) -> None:
        assert self._file is not None
        self._next_check = time.monotonic() + self.CHECK_S
        stamp = _stamp(self._file)
        if stamp is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._ring = KeyRing(read_keys(self._file))
        except SettingsError as error:
            logger.error("the keys stay unchanged: %s", error)
        else:
            logger.info("%d keys are in force", len(self._ring))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_keys(file: Path) -> dict[str, APIKey]:
    """Read the keys in a YAML file, by name. Raises SettingsError."""
    try:
        return parse_keys(read_yaml(file))
    except ValidationError as error:
        # No values: a key may stand in place of its hash.
        raise SettingsError(f"{file}: {format_validation_error(error, lambda problem: False)}") from None
