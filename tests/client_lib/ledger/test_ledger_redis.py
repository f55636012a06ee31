"""The ledger in Redis: failures of the server. test_ledger.py has the tests of all stores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_package

from client_lib.errors import BudgetExceededError, InvalidRequestError, LedgerUnavailableError
from client_lib.ledger import Budget, Entry, Ledger, RedisStore, SQLiteStore, open_store
from client_lib.prompts.types import Draw
from del_core import accounting
from del_core.mechanism import Mechanism
from tests.support.redis_server import DURABLE, RedisServer

WEAK = Mechanism.from_mu(4.0, bits=4, dim=32)
STRONG = Mechanism.from_mu(1.0, bits=4, dim=32)
DELTA = 1e-6
LARGE = Budget(1e7, DELTA, mixed=False)


def draw(tokens: int = 1) -> Draw:
    return Draw(secrets.token_bytes(16), tokens)


def tokens(ledger: Ledger, subject: str = "ann") -> float:
    """Tokens under WEAK that a subject has been charged with."""
    trials: int = sum(entry["trials"] for entry in ledger.export(subject)["entries"])
    return trials / (WEAK.trials * WEAK.dim)


@pytest.fixture
def prefix() -> str:
    return f"test:{secrets.token_hex(8)}:"


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that a test may kill."""
    with RedisServer.running() as running:
        yield running


def _spend_until_refused(url: str, prefix: str, results: multiprocessing.Queue[int]) -> None:
    ledger = Ledger(RedisStore(url, prefix=prefix, timeout=60), budget=Budget(50.0, DELTA))
    done = 0
    try:
        while done < 10_000:
            ledger.spend("ann", STRONG, [draw()])
            done += 1
    except BudgetExceededError:
        pass
    results.put(done)


def test_several_processes_spend_exactly_what_there_is(redis: RedisServer, prefix: str) -> None:
    fits = 0
    while accounting.epsilon(STRONG, DELTA / 2, fits + 1) <= 50.0:
        fits += 1
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=_spend_until_refused, args=(redis.url, prefix, results)) for _ in range(3)]
    for process in processes:
        process.start()
    spent = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(spent) == fits > 20


def test_what_was_spent_survives_kill_9_of_the_server(own: RedisServer) -> None:
    store = RedisStore(own.url, timeout=2)
    ledger = Ledger(store, budget=LARGE)
    draws = [draw() for _ in range(20)]
    for one in draws[:10]:
        ledger.spend("ann", WEAK, [one])
    own.stop(signal.SIGKILL)
    with pytest.raises(LedgerUnavailableError) as caught:
        ledger.spend("ann", WEAK, [draws[10]])
    assert "nothing has been sent" in str(caught.value)
    own.start()
    ledger.spend("ann", WEAK, draws)
    assert tokens(ledger) == 20
    ledger.close()
    with pytest.raises(LedgerUnavailableError, match="closed"):
        ledger.spent("ann")


def test_a_kill_at_any_moment_loses_and_doubles_nothing(own: RedisServer) -> None:
    """Acknowledged draws are kept; draws in doubt are charged once in the end."""
    store = RedisStore(own.url, timeout=20, hold=0.5)
    ledger = Ledger(store, budget=LARGE)
    done, stop = 0, threading.Event()
    pending: Draw | None = None

    def spend() -> None:
        nonlocal done, pending
        while not stop.is_set():
            pending = pending or draw()
            with contextlib.suppress(LedgerUnavailableError):
                ledger.spend("ann", WEAK, [pending])
                pending, done = None, done + 1

    thread = threading.Thread(target=spend)
    thread.start()
    try:
        for _ in range(4):
            stop.wait(0.2 + secrets.randbelow(1000) / 5000)
            own.stop(signal.SIGKILL)
            own.start()
    finally:
        stop.set()
        thread.join(60)
    if pending is not None:
        ledger.spend("ann", WEAK, [pending])
        done += 1
    assert done > 10
    assert tokens(ledger) == done
    ledger.close()


def test_a_command_that_was_carried_out_may_be_sent_again(redis: RedisServer, prefix: str) -> None:
    """The answer to the commit is lost: the same script runs a second time and changes nothing."""
    store = RedisStore(redis.url, prefix=prefix)
    ledger = Ledger(store, budget=LARGE)
    commit, answers = store._commit, []

    def twice(**arguments: Any) -> Any:
        answers.extend([commit(**arguments), commit(**arguments)])
        return answers[-1]

    store._commit = twice  # type: ignore[assignment]
    ledger.spend("ann", WEAK, [draw(3)])
    assert answers == [1, 1]
    assert tokens(ledger) == 3
    erase, answers = store._erase, []

    def erased_twice(**arguments: Any) -> Any:
        answers.extend([erase(**arguments), erase(**arguments)])
        return answers[-1]

    store._erase = erased_twice  # type: ignore[assignment]
    assert ledger.erase("ann") is True
    assert answers == [1, 1]


def test_a_holder_that_was_too_slow_changes_nothing(redis: RedisServer, prefix: str) -> None:
    slow = RedisStore(redis.url, prefix=prefix, hold=0.05)
    other = Ledger(RedisStore(redis.url, prefix=prefix), budget=LARGE)

    def dawdle() -> None:
        with slow.account("ann") as account:
            other.spend("ann", WEAK, [draw()])  # waits until the hold has run out
            account.add(Entry(account.now + 60, WEAK.ratio_numerator, 1), [b"x"])

    with pytest.raises(LedgerUnavailableError, match="lost"):
        dawdle()
    assert tokens(other) == 1
    assert other.store.subjects() == ["ann"]


def test_a_subject_that_others_hold_is_waited_for_and_then_reported(redis: RedisServer, prefix: str) -> None:
    store = RedisStore(redis.url, prefix=prefix)
    waiting = Ledger(RedisStore(redis.url, prefix=prefix, timeout=0.2), budget=LARGE)
    with store.account("ann"):
        with pytest.raises(LedgerUnavailableError, match="held by others"):
            waiting.spend("ann", WEAK, [draw()])
        waiting.spend("bob", WEAK, [draw()])
    waiting.spend("ann", WEAK, [draw()])


def test_a_server_that_hangs_is_reported(own: RedisServer) -> None:
    ledger = Ledger(RedisStore(own.url, timeout=0.2), budget=LARGE)
    own.freeze()
    try:
        with pytest.raises(LedgerUnavailableError, match="Timeout"):
            ledger.spend("ann", WEAK, [draw()])
    finally:
        own.thaw()


def test_a_full_server_stops_spending_and_loses_nothing(own: RedisServer) -> None:
    ledger = Ledger(RedisStore(own.url), budget=LARGE)
    ledger.spend("ann", WEAK, [draw()])
    admin = redis_package.Redis.from_url(own.url)
    admin.config_set("maxmemory", 1)
    with pytest.raises(LedgerUnavailableError, match="memory"):
        ledger.spend("ann", WEAK, [draw()])
    admin.config_set("maxmemory", 0)
    admin.close()
    assert tokens(ledger) == 1
    ledger.spend("ann", WEAK, [draw()])
    assert tokens(ledger) == 2
    ledger.close()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--appendonly", "no"), "appendonly must be yes, got no"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "appendfsync must be always, got everysec"),
        ((*DURABLE, "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy must be noeviction, got allkeys-lru"),
        ((*DURABLE, "--rename-command", "CONFIG", ""), "appendfsync must be always, got no permission"),
    ],
)
def test_a_server_that_may_forget_is_refused(options: tuple[str, ...], name: str) -> None:
    with RedisServer.running(*options) as forgetful:
        with pytest.raises(LedgerUnavailableError, match=name):
            RedisStore(forgetful.url)
        ledger = Ledger(RedisStore(forgetful.url, durable=False), budget=LARGE)
        ledger.spend("ann", WEAK, [draw()])
        ledger.close()


def test_a_fork_uses_connections_of_its_own(redis: RedisServer, prefix: str) -> None:
    ledger = Ledger(RedisStore(redis.url, prefix=prefix), budget=LARGE)
    ledger.spend("ann", WEAK, [draw()])
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            for _ in range(5):
                ledger.spend("ann", WEAK, [draw()])
            status = 0
        finally:
            os._exit(status)
    for _ in range(5):
        ledger.spend("ann", WEAK, [draw()])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tokens(ledger) == 11


def test_subjects_are_listed_and_erased(redis: RedisServer, prefix: str) -> None:
    store = RedisStore(redis.url, prefix=prefix)
    ledger = Ledger(store, budget=LARGE)
    names = ["ann", "{b}:*?[x]", "日 🙂", "x" * 256]
    for name in names:
        ledger.spend(name, WEAK, [draw()])
        assert tokens(ledger, name) == 1
    assert store.subjects() == sorted(names)
    for name in names:
        assert ledger.erase(name)
        assert not ledger.erase(name)
    assert store.subjects() == []
    left = [key for key in store._redis.scan_iter(f"{prefix}*") if not key.endswith(b":done")]
    assert left == []  # but for tokens, which go by themselves
    assert all(0 < store._redis.ttl(key) <= 120 for key in store._redis.scan_iter(f"{prefix}*"))


def test_places(redis: RedisServer, tmp_path: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prefix"):
        RedisStore(redis.url, prefix="*")
    with pytest.raises(InvalidRequestError, match="redis://"):
        RedisStore("http://127.0.0.1")
    for place, kind in ((redis.url, RedisStore), (str(tmp_path / "ledger.db"), SQLiteStore)):
        opened = open_store(place)
        assert isinstance(opened, kind)
        opened.close()


def test_a_password_is_not_told() -> None:
    with pytest.raises(LedgerUnavailableError) as caught:
        RedisStore("redis://user:hunter2@127.0.0.1:1/3", timeout=1)
    assert "hunter2" not in str(caught.value)
    assert "127.0.0.1:1/3" in str(caught.value)


def test_without_its_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(InvalidRequestError, match=r"del-serve\[redis\]"):
        RedisStore("redis://127.0.0.1")
