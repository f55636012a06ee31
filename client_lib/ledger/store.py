"""The protocol of a ledger's store, and a store in memory.

A store holds, for every subject, entries (time bucket, noise level, trials) and the ids of the
draws that were charged. A decision happens inside :meth:`LedgerStore.account`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from client_lib.errors import LedgerUnavailableError
from del_core.mechanism.base import Level
from del_core.net.fork import renewed_after_fork


@dataclass(frozen=True, slots=True)
class Entry:
    """Amount spent at one noise level in the bucket that ends at ``end``.

    ``level`` and ``trials`` are those of ``TokenMechanism.charge``: for the binomial mechanism the
    ratio times 2^31 and a number of trials, else the mechanism as JSON and a number of tokens.
    ``end`` is in seconds of the store's clock, infinite if spending never expires.
    """

    end: float
    level: Level
    trials: int


class Account(Protocol):
    """One subject's state, while it is held."""

    now: float
    """Seconds of the store's clock, which neither goes back nor jumps."""

    def entries(self) -> Sequence[Entry]:
        """Return all entries."""

    def known(self, draws: Collection[bytes]) -> set[bytes]:
        """Return those of the draws that were charged before."""

    def add(self, entry: Entry, draws: Collection[bytes]) -> None:
        """Add spending, and note the draws as charged."""

    def forget_before(self, end: float) -> None:
        """Drop entries and their draws whose bucket ended at ``end`` or before."""


class LedgerStore(Protocol):
    """A store of spending. Every method may raise ``LedgerUnavailableError``."""

    def account(self, subject: str) -> AbstractContextManager[Account]:
        """Hold a subject's state, which nobody else changes meanwhile.

        The changes are durable once the context is left, and absent after an exception.
        """

    def subjects(self) -> Sequence[str]:
        """Return all subjects with data."""

    def erase(self, subject: str) -> bool:
        """Delete all data of a subject; return whether there was any."""

    def close(self) -> None:
        """Close files and connections."""


@dataclass(slots=True)
class _MemoryAccount:
    now: float = 0.0
    _entries: dict[tuple[float, Level], int] = field(default_factory=dict)
    _draws: dict[bytes, float] = field(default_factory=dict)

    def entries(self) -> Sequence[Entry]:
        return [Entry(end, level, trials) for (end, level), trials in self._entries.items()]

    def known(self, draws: Collection[bytes]) -> set[bytes]:
        return {draw for draw in draws if draw in self._draws}

    def add(self, entry: Entry, draws: Collection[bytes]) -> None:
        key = (entry.end, entry.level)
        self._entries[key] = self._entries.get(key, 0) + entry.trials
        self._draws.update(dict.fromkeys(draws, entry.end))

    def forget_before(self, end: float) -> None:
        self._entries = {key: trials for key, trials in self._entries.items() if key[0] > end}
        self._draws = {draw: kept for draw, kept in self._draws.items() if kept > end}


class MemoryStore:
    """A store in the memory of one process, for tests and for spending that may be forgotten.

    A forked process must not use it: the parent would not see its spending, so a budget could be
    spent twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[str, _MemoryAccount] = {}
        self._is_copy = False
        renewed_after_fork(self)

    def after_fork(self) -> None:
        """Refuse from now on."""
        self._lock, self._is_copy = threading.Lock(), True

    @contextlib.contextmanager
    def account(self, subject: str) -> Iterator[Account]:
        """See ``LedgerStore``."""
        with self._held():
            # Changes are single statements that do not fail, so they are never partial.
            account = self._accounts.setdefault(subject, _MemoryAccount())
            account.now = time.monotonic()
            yield account

    def subjects(self) -> Sequence[str]:
        """See ``LedgerStore``."""
        with self._held():
            return sorted(self._accounts)

    def erase(self, subject: str) -> bool:
        """See ``LedgerStore``."""
        with self._held():
            return self._accounts.pop(subject, None) is not None

    def close(self) -> None:
        """Do nothing; the memory is freed with the store."""

    def _held(self) -> threading.Lock:
        if self._is_copy:
            raise LedgerUnavailableError("ledger: a MemoryStore belongs to the process that made it; use a SQLiteStore")
        return self._lock
