"""Clients with a ledger under faults: everything that may have been sent is charged once."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_lib import BudgetExceededError, DELClientError, LedgerUnavailableError, public
from client_lib.ledger import Budget, Ledger, MemoryStore, SQLiteStore
from del_core.accounting.composition import Composition
from tests.client_lib.conftest import Calls
from tests.support.scripted_server import ScriptedServer, cut, error, reset

Connect = Callable[..., Calls]
SECRET = "my test was positive"
DELTA = 1e-6
LARGE = Budget(1e7, DELTA, mixed=False)


def tokens_charged(ledger: Ledger, server: ScriptedServer, subject: str) -> float:
    """Tokens under `open` that the subject has paid for, from the trials that are kept."""
    mechanism = server.bundle.mechanism("open")
    trials: int = sum(entry["trials"] for entry in ledger.export(subject)["entries"])
    return trials / (mechanism.trials * mechanism.dim)


def test_spending_is_the_exact_figure_of_what_was_sent(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger(MemoryStore(), budget=LARGE)
    calls = connect(ledger=ledger, subject="ann")
    encoded = calls.call("encode", SECRET, variant="open")
    for _ in range(3):
        calls.complete(encoded, variant="open")
    calls.complete([public("no secret at all")], variant="open")
    expected = Composition.of(server.bundle.mechanism("open"), encoded.private_tokens).epsilon(DELTA)
    assert ledger.spent("ann").epsilon == pytest.approx(expected, rel=1e-12)
    assert ledger.spent("bob").epsilon == 0.0


def test_what_the_budget_does_not_allow_is_not_sent(connect: Connect, server: ScriptedServer, tmp_path: Path) -> None:
    mechanism = server.bundle.mechanism("open")
    calls = connect()
    tokens = calls.call("encode", SECRET, variant="open").private_tokens
    twice = Composition.of(mechanism, 2 * tokens).epsilon(DELTA)
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(twice, DELTA, mixed=False))
    calls = connect(ledger=ledger, subject="ann")
    calls.complete(SECRET, variant="open")
    calls.stream(SECRET, variant="open", fresh=True)
    sent = len(server.frames)
    for method in (calls.complete, calls.stream):
        with pytest.raises(BudgetExceededError) as caught:
            method(SECRET, variant="open", fresh=True)
        assert caught.value.subject == "ann"
        assert SECRET not in str(caught.value)
    assert len(server.frames) == sent
    calls.with_options(subject="bob").complete(SECRET, variant="open")
    ledger.close()


@pytest.mark.parametrize("seed", range(4))
def test_chaos_neither_loses_nor_doubles_spending(
    connect: Connect, server: ScriptedServer, tmp_path: Path, seed: int
) -> None:
    """Resets, cut streams, 429 and 503: typed errors or answers, and every draw charged once."""
    chooser = random.Random(seed)
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=LARGE)
    calls = connect(ledger=ledger, subject="ann", max_retries=2, max_resumes=2)
    draws: dict[bytes, int] = {}
    answered = 0
    for _ in range(25):
        encoded = calls.call("encode", SECRET, variant="open")
        faults: list[Any] = [
            reset,
            error(503, "overloaded", {"retry-after": "0"}),
            error(429, "rate_limit_exceeded", {"retry-after": "0"}),
            cut(chooser.randrange(1, 2000)),
        ]
        server.script.clear()
        server.script.extend(chooser.choices(faults, k=chooser.randrange(5)))
        method = chooser.choice([calls.complete, calls.stream])
        before = len(server.frames)
        try:
            method(encoded, variant="open")
            answered += 1
        except DELClientError:
            pass  # nothing outside the family
        assert len(server.frames) > before
        draws.update({draw.id: draw.tokens for draw in encoded.draws})
        assert tokens_charged(ledger, server, "ann") == sum(draws.values())
    assert answered
    ledger.close()


def test_a_ledger_that_fails_stops_sending_and_goes_on_later(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(SQLiteStore(path, busy_timeout=0.05), budget=LARGE)
    calls = connect(ledger=ledger, subject="ann")
    encoded = calls.call("encode", SECRET, variant="open")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailableError) as caught:
        calls.complete(encoded, variant="open")
    assert SECRET not in str(caught.value)
    assert not server.frames
    other.execute("COMMIT")
    other.close()
    calls.complete(encoded, variant="open")
    assert tokens_charged(ledger, server, "ann") == encoded.private_tokens
    ledger.close()
