"""A store in Redis, for budgets shared by several machines. Needs the extra ``redis``.

A lock with a time to live holds a subject. A script writes the holder's decision after checking
that the lock is still its own, so a holder that was too slow changes nothing. The script leaves its
token behind, so a repetition after a broken connection changes nothing either.

The clock is the Redis server's time of day, and never goes back. A server's clock that is set
forward expires spending early: use NTP.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import math
import re
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from client_lib._validation import check_seconds, invalid, missing_package, must_be
from client_lib.errors import LedgerUnavailableError
from client_lib.ledger import redis_scripts
from client_lib.ledger.store import Account, Entry

if TYPE_CHECKING:
    from redis import Redis
    from redis.commands.core import Script

_TRIES = 3
_LONGEST_POLL_S = 0.05


class RedisStore:
    """A :class:`client_lib.ledger.LedgerStore` in a Redis server, 7.0 or newer.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user, password and database number.
        prefix: prefix of the keys' names.
        timeout: seconds to wait for a connection, a response, or a subject that is held.
        hold: seconds after which a silent holder is presumed dead.
        durable: refuse a server that may lose acknowledged data. It needs ``appendonly yes``,
            ``appendfsync always`` and ``maxmemory-policy noeviction``. Replicas are written later,
            so a failover may lose the last moments nevertheless.

    Raises:
        InvalidRequestError: the package redis is missing, or an argument is out of range.
        LedgerUnavailableError: the server cannot be reached, or may lose data.
    """

    def __init__(
        self, url: str, *, prefix: str = "del:ledger:", timeout: float = 10.0, hold: float = 10.0, durable: bool = True
    ) -> None:
        try:
            import redis
            from redis.backoff import ExponentialBackoff
            from redis.retry import Retry
        except ImportError:
            raise missing_package("ledger", "used with the package redis", "redis") from None
        if not re.fullmatch(r"[A-Za-z0-9:_.-]{1,100}", prefix):
            raise invalid("prefix", "1 to 100 of A-Z a-z 0-9 : _ . -", repr(prefix))
        check_seconds("timeout", timeout)
        check_seconds("hold", hold)
        self._errors = redis.RedisError
        self._where = _without_password(url)
        self._prefix, self._timeout, self._hold_ms = prefix, timeout, max(1, round(1000 * hold))
        self._closed = False
        try:
            self._redis: Redis = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # Every command may be repeated: the scripts are idempotent.
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), _TRIES),
            )
        except ValueError:
            raise invalid("ledger", "a redis://, rediss:// or unix:// URL", repr(self._where)) from None
        self._hold, self._commit, self._erase, self._release = (
            self._redis.register_script(text)
            for text in (redis_scripts.HOLD, redis_scripts.COMMIT, redis_scripts.ERASE, redis_scripts.RELEASE)
        )
        if durable:
            self._check_durability()

    @contextlib.contextmanager
    def account(self, subject: str) -> Iterator[Account]:
        """See ``LedgerStore``."""
        keys, token = self._keys(subject), secrets.token_hex(16)
        account = _RedisAccount(self, keys, self._take(keys, token))
        try:
            yield account
        except BaseException:
            with contextlib.suppress(LedgerUnavailableError):  # the lock expires by itself
                self._run(self._release, keys, [token])
            raise
        if self._run(self._commit, keys, [token, *account.changes()]) != 1:
            raise self._lost()

    def subjects(self) -> Sequence[str]:
        """See ``LedgerStore``."""
        pattern = re.compile(re.escape(self._prefix) + r"\{([A-Za-z0-9_=-]+)\}:spending")
        with self._failures():
            names = [key.decode() for key in self._redis.scan_iter(match=f"{self._prefix}*:spending", count=1000)]
        found = {match[1] for name in names if (match := pattern.fullmatch(name))}
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return sorted(base64.urlsafe_b64decode(name).decode() for name in found)
        raise LedgerUnavailableError(f"ledger: {self._where} has foreign keys under {self._prefix}")

    def erase(self, subject: str) -> bool:
        """See ``LedgerStore``."""
        keys, token = self._keys(subject), secrets.token_hex(16)
        self._take(keys, token)
        found = self._run(self._erase, keys, [token])
        if found == -1:
            raise self._lost()
        return bool(found)

    def close(self) -> None:
        """See ``LedgerStore``."""
        self._closed = True
        self._redis.close()

    def charged(self, keys: Sequence[str], draws: Collection[bytes]) -> dict[bytes, float]:
        """Return those of the draws that were charged, with the ends of their buckets."""
        if not draws:
            return {}
        with self._failures():
            # redis-py's own zmscore() is typed for text.
            scores: list[Any] = self._redis.execute_command("ZMSCORE", keys[2], *draws)  # type: ignore[no-untyped-call]
        return {draw: float(score) for draw, score in zip(draws, scores, strict=True) if score is not None}

    def _keys(self, subject: str) -> list[str]:
        name = base64.urlsafe_b64encode(subject.encode("utf-8")).decode("ascii")
        return [f"{self._prefix}{{{name}}}:{part}" for part in ("lock", "spending", "draws", "done")]

    def _take(self, keys: Sequence[str], token: str) -> list[Any]:
        """Hold a subject, and return its data as the script does."""
        if self._closed:
            raise LedgerUnavailableError(f"ledger: {self._where} has been closed")
        end = time.monotonic() + self._timeout
        while (kept := self._run(self._hold, keys, [token, self._hold_ms])) is None:
            if time.monotonic() > end:
                raise LedgerUnavailableError(
                    f"ledger: {self._where}: the subject was held by others for {self._timeout} s; "
                    "nothing has been sent"
                )
            # Jitter, so that waiting processes do not retry all at once.
            time.sleep(_LONGEST_POLL_S * (1 + secrets.randbelow(1000)) / 1000)
        return list(kept)

    def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        with self._failures():
            return script(keys=list(keys), args=list(arguments))

    def _lost(self) -> LedgerUnavailableError:
        return LedgerUnavailableError(
            f"ledger: {self._where}: the subject was held for longer than {self._hold_ms / 1000} s and lost; "
            "nothing was recorded and nothing has been sent"
        )

    def _check_durability(self) -> None:
        with self._failures():
            persistence, memory = self._redis.info("persistence"), self._redis.info("memory")
        try:
            policy: str | None = self._redis.config_get("appendfsync").get("appendfsync")
        except self._errors:  # providers often forbid the command
            policy = None
        for name, found, needed in (
            ("appendonly", "yes" if persistence.get("aof_enabled") else "no", "yes"),
            ("appendfsync", policy, "always"),
            ("maxmemory-policy", memory.get("maxmemory_policy"), "noeviction"),
        ):
            if found != needed:
                raise LedgerUnavailableError(
                    f"ledger: {self._where} may lose spending unless durable=False: "
                    + must_be(name, needed, found or "no permission to read it")
                )

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (self._errors, OSError) as error:
            raise LedgerUnavailableError(
                f"ledger: {self._where}: {type(error).__name__}: {error}; nothing has been sent"
            ) from error

    def __repr__(self) -> str:
        return f"RedisStore({self._where!r})"


class _RedisAccount:
    """A held subject: its data when the hold began, and the pending changes."""

    def __init__(self, store: RedisStore, keys: Sequence[str], kept: Sequence[Any]) -> None:
        self._store, self._keys = store, keys
        self._now_text: bytes = kept[0]
        self.now = int(kept[0]) / 1e6
        fields = dict(zip(kept[1][::2], kept[1][1::2], strict=True))
        fields.pop(b"now", None)
        self._kept = [_entry(name, trials) for name, trials in fields.items()]
        self._forgotten = -math.inf
        self._added: list[tuple[Entry, Collection[bytes]]] = []

    def entries(self) -> Sequence[Entry]:
        kept = [entry for entry in self._kept if entry.end > self._forgotten]
        return kept + [entry for entry, _ in self._added]

    def known(self, draws: Collection[bytes]) -> set[bytes]:
        charged = self._store.charged(self._keys, draws)
        added = {draw for _, ids in self._added for draw in ids}
        return {draw for draw, end in charged.items() if end > self._forgotten} | (added & set(draws))

    def add(self, entry: Entry, draws: Collection[bytes]) -> None:
        self._added.append((entry, draws))

    def forget_before(self, end: float) -> None:
        self._forgotten = max(self._forgotten, end)

    def changes(self) -> list[Any]:
        """Return the arguments of the commit script, after the token."""
        before = "" if self._forgotten == -math.inf else repr(self._forgotten)
        fields: list[Any] = []
        ids: list[Any] = []
        for entry, draws in self._added:
            fields += [f"{entry.end!r}|{entry.level}", entry.trials]
            for draw in draws:
                ids += [repr(entry.end), draw]
        return [self._now_text, before, len(self._added), *fields, *ids]


def _entry(name: bytes, trials: bytes) -> Entry:
    end, _, level = name.decode().partition("|")
    return Entry(float(end), int(level) if level.isdigit() else level, int(trials))


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
