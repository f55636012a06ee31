"""The ledger: spending is checked and recorded before anything is sent.

client = Client(url, ledger=Ledger(SQLiteStore("ledger.db"), budget=Budget(epsilon=500.0)))
client.with_options(subject="user-4711").complete(...)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from client_lib._validation import has_surrogate, invalid, must_be
from client_lib.errors import BudgetExceededError
from client_lib.ledger.budget import Budget, Spending
from client_lib.ledger.filter import Filter
from client_lib.ledger.redis import RedisStore
from client_lib.ledger.sqlite import SQLiteStore
from client_lib.ledger.store import Entry, LedgerStore
from client_lib.prompts.types import Draw
from del_core.mechanism import TokenMechanism
from del_core.mechanism.base import Level

_LONGEST_SUBJECT = 256


def is_url(place: str) -> bool:
    """Return whether a location is a Redis server rather than a file."""
    return place.startswith(("redis://", "rediss://", "unix://"))


def open_store(place: str | os.PathLike[str]) -> LedgerStore:
    """Open a Redis server's URL (``redis://``, ``rediss://``, ``unix://``) or a SQLite file.

    Raises as :class:`RedisStore` and :class:`SQLiteStore` do.
    """
    return RedisStore(place) if isinstance(place, str) and is_url(place) else SQLiteStore(place)


class Ledger:
    """Limits every subject of a store to a budget. As safe for several threads as its store.

    Guarantees are worst case over every table; :mod:`client_lib.ledger.filter` explains how
    spending adds up.

    With ``hide_repeats`` a request is refused unless the budget would cover it even if nothing of
    it had been charged before, and messages hold no amounts. Otherwise, once a budget is spent,
    whoever may send prompts for the subject can find out whether a guessed prompt was sent before:
    it would be answered, and a new one refused.
    """

    def __init__(self, store: LedgerStore, *, budget: Budget, hide_repeats: bool = False) -> None:
        self.store = store
        self.budget = budget
        self._hide_repeats = hide_repeats
        self._filter = Filter(budget.epsilon, budget.delta, budget.mixed)
        self._capacities: dict[Level, int] = {}

    def spend(self, subject: str, mechanism: TokenMechanism, draws: Sequence[Draw]) -> Spending:
        """Charge the draws that have not been charged yet, durably.

        Raises:
            InvalidRequestError: the subject is not acceptable.
            BudgetExceededError: the draws exceed the budget; nothing was recorded.
            LedgerUnavailableError: the store failed; nothing was recorded.
        """
        check_subject(subject)
        with self.store.account(subject) as account:
            if self.budget.window is not None:
                account.forget_before(self._window_start(account.now))
            before = account.entries()
            known = account.known([draw.id for draw in draws])
            new = {draw.id: draw.tokens for draw in draws if draw.id not in known}
            end = self._bucket_end(account.now)
            if self._hide_repeats and draws:
                whole = Entry(end, *mechanism.charge(sum(draw.tokens for draw in draws)))
                if not self._filter.admits(_trials([*before, whole])):
                    raise self._exceeded(subject, before, whole, account.now)
            entry = Entry(end, *mechanism.charge(sum(new.values())))
            if new:
                if not self._filter.admits(_trials([*before, entry])):
                    raise self._exceeded(subject, before, entry, account.now)
                account.add(entry, list(new))
            after = _trials([*before, entry] if new else before)
        return self._spending(subject, after)

    def spent(self, subject: str) -> Spending:
        """Return a subject's spending within the window, without changing anything."""
        check_subject(subject)
        with self.store.account(subject) as account:
            trials = _trials(self._counted(account.entries(), account.now))
        return self._spending(subject, trials)

    def tokens_left(self, subject: str, mechanism: TokenMechanism) -> int:
        """Return the most new private tokens of a mechanism that the budget still covers.

        Unlike :attr:`Spending.remaining` it accounts for epsilons that do not add up. Nothing is
        reserved: another request of the subject may spend the tokens first.
        """
        check_subject(subject)
        with self.store.account(subject) as account:
            trials = _trials(self._counted(account.entries(), account.now))

        level, amount = mechanism.charge(1)
        if trials.keys() <= {level}:
            return max(0, self._capacity(level) - trials.get(level, 0)) // amount

        def covers(tokens: int) -> bool:
            return self._filter.admits({**trials, level: trials.get(level, 0) + mechanism.charge(tokens)[1]})

        return _largest(covers)

    def _capacity(self, level: Level) -> int:
        """Return the most that may be spent at one noise level alone; computed once."""
        if level not in self._capacities:
            self._capacities[level] = _largest(lambda amount: self._filter.admits({level: amount}))
        return self._capacities[level]

    def export(self, subject: str) -> dict[str, Any]:
        """Return all data of a subject as JSON values; ``epsilon`` ignores expired entries."""
        check_subject(subject)
        with self.store.account(subject) as account:
            entries = sorted(account.entries(), key=lambda entry: (entry.end, str(entry.level)))
            now = account.now
        spending = self._spending(subject, _trials(self._counted(entries, now)))
        return {
            "subject": subject,
            "epsilon": spending.epsilon if math.isfinite(spending.epsilon) else None,
            "delta": self.budget.delta,
            "budget": self.budget.epsilon,
            "entries": [{"expires": self._expiry(entry.end, now), **_spent_at(entry)} for entry in entries],
        }

    def erase(self, subject: str) -> bool:
        """Delete all data of a subject, restoring its budget; return whether there was any."""
        check_subject(subject)
        return self.store.erase(subject)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def _spending(self, subject: str, trials: dict[Level, int]) -> Spending:
        return Spending(subject, self._filter.spent(trials), self.budget.delta, self.budget.epsilon)

    def _bucket_end(self, now: float) -> float:
        """Return when the bucket of ``now`` ends: an hour of 30 days, 1/720 of any window."""
        if self.budget.window is None:
            return math.inf
        size = self.budget.window.total_seconds() / 720
        return (math.floor(now / size) + 1) * size

    def _window_start(self, now: float) -> float:
        """Return the time at or before which buckets have left the window."""
        return -math.inf if self.budget.window is None else now - self.budget.window.total_seconds()

    def _counted(self, entries: Sequence[Entry], now: float) -> Sequence[Entry]:
        return [entry for entry in entries if entry.end > self._window_start(now)]

    def _expiry(self, end: float, now: float) -> str | None:
        """Return when a bucket leaves the window, in this machine's time of day."""
        if self.budget.window is None:
            return None
        left = timedelta(seconds=end - now) + self.budget.window
        return (datetime.now(UTC) + left).isoformat(timespec="seconds")

    def _exceeded(self, subject: str, before: Sequence[Entry], entry: Entry, now: float) -> BudgetExceededError:
        spent = self._filter.spent(_trials(before))
        requested = self._filter.spent(_trials([*before, entry]))
        retry_at = None
        for end in sorted({kept.end for kept in before}) if self.budget.window is not None else ():
            left = [kept for kept in before if kept.end > end]
            if self._filter.admits(_trials([*left, entry])):
                retry_at = datetime.fromisoformat(str(self._expiry(end, now)))
                break
        when = "it never fits" if retry_at is None else f"it fits from {retry_at.isoformat()} on"
        name = f"the subject's epsilon at delta {self.budget.delta:g}"
        wanted, found = f"at most {self.budget.epsilon:g}", f"{requested:.6g} with this request"
        said = f"{must_be(name, wanted, found)}; {spent:.6g} is spent, and {when}"
        if self._hide_repeats:
            said = f"{must_be(name, wanted, 'more with this request')}, and {when}"
        return BudgetExceededError(
            said,
            subject=subject,
            epsilon_spent=spent,
            epsilon_requested=requested,
            epsilon_budget=self.budget.epsilon,
            retry_at=retry_at,
        )


def _largest(covers: Callable[[int], bool]) -> int:
    """Return the largest integer that is covered; 0 if 1 is not. What is covered has no gaps."""
    if not covers(1):
        return 0
    covered, refused = 1, 2
    while covers(refused):
        covered, refused = refused, 2 * refused
    while refused - covered > 1:
        middle = (covered + refused) // 2
        covered, refused = (middle, refused) if covers(middle) else (covered, middle)
    return covered


def check_subject(subject: object) -> None:
    """Raise ``InvalidRequestError`` unless a store can hold the subject."""
    if not isinstance(subject, str):
        raise invalid("subject", "a string", f"a {type(subject).__name__}")
    if not 1 <= len(subject) <= _LONGEST_SUBJECT or has_surrogate(subject) or "\0" in subject:
        wanted = f"1 to {_LONGEST_SUBJECT} valid characters without NUL"
        raise invalid("subject", wanted, f"{len(subject)} characters")


def _spent_at(entry: Entry) -> dict[str, Any]:
    if isinstance(entry.level, str):
        return {"mechanism": json.loads(entry.level)["mechanism"], "tokens": entry.trials}
    return {"ratio": entry.level / 2**31, "trials": entry.trials}


def _trials(entries: Sequence[Entry]) -> dict[Level, int]:
    """Return the amount at every noise level."""
    trials: dict[Level, int] = {}
    for entry in entries:
        if entry.trials:
            trials[entry.level] = trials.get(entry.level, 0) + entry.trials
    return trials
