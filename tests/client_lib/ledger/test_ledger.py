"""The ledger: spending adds up exactly, once, durably, and before anything is sent."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import secrets
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client_lib.errors import BudgetExceededError, InvalidRequestError, LedgerUnavailableError
from client_lib.ledger import Budget, Entry, Ledger, LedgerStore, MemoryStore, RedisStore, SQLiteStore
from client_lib.ledger import sqlite as sqlite_store
from client_lib.ledger import store as memory_store
from client_lib.prompts.types import Draw
from del_core import accounting
from del_core.accounting.composition import Composition
from del_core.mechanism import Mechanism
from tests.support.redis_server import RedisServer

WEAK = Mechanism.from_mu(4.0, bits=4, dim=32)
STRONG = Mechanism.from_mu(1.0, bits=4, dim=32)
DELTA = 1e-6


def exactly(value: float) -> object:
    """Equal up to rounding: another order of the same sums."""
    return pytest.approx(value, rel=1e-12)


def draw(tokens: int = 1) -> Draw:
    return Draw(secrets.token_bytes(16), tokens)


def capacity(mechanism: Mechanism, epsilon: float, delta: float) -> int:
    """Most tokens of one mechanism that keep a budget, by the accounting alone."""
    tokens = 0
    while accounting.epsilon(mechanism, delta, tokens + 1) <= epsilon:
        tokens += 1
    return tokens


class Clock:
    """The stores' clocks, moved by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, store: LedgerStore | None = None) -> None:
        self._redis = store if isinstance(store, RedisStore) else None
        self.since_boot, self.boot, self.wall = 1000.0, "boot-1", 1.8e9
        monkeypatch.setattr(sqlite_store, "_boot", lambda: (self.boot, self.since_boot))
        monkeypatch.setattr(sqlite_store.time, "time", lambda: self.wall)
        monkeypatch.setattr(memory_store.time, "monotonic", lambda: self.since_boot)

    def advance(self, time_passed: timedelta) -> None:
        self.since_boot += time_passed.total_seconds()
        self.wall += time_passed.total_seconds()
        if self._redis is not None:
            # A server's own clock cannot be set; a subject's time never goes back, so this is the
            # same to it.
            for key in self._redis._redis.scan_iter(f"{self._redis._prefix}*:spending"):
                (seen,) = self._redis._redis.hmget(key, "now")
                self._redis._redis.hset(key, "now", int(seen) + round(1e6 * time_passed.total_seconds()))


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LedgerStore]:
    made: LedgerStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "sqlite":
        made = SQLiteStore(tmp_path / "ledger.db")
    else:
        redis: RedisServer = request.getfixturevalue("redis")
        made = RedisStore(redis.url, prefix=f"test:{secrets.token_hex(8)}:")
    yield made
    made.close()


# --- what is spent --------------------------------------------------------------------------------


def test_one_level_is_exact_and_every_draw_counts_once(store: LedgerStore) -> None:
    ledger = Ledger(store, budget=Budget(500.0, DELTA, mixed=False))
    assert ledger.spent("ann").epsilon == 0.0
    one, three = draw(1), draw(3)
    assert ledger.spend("ann", WEAK, [one]).epsilon == exactly(accounting.epsilon(WEAK, DELTA, 1))
    assert ledger.spend("ann", WEAK, [one, three]).epsilon == exactly(accounting.epsilon(WEAK, DELTA, 4))
    assert ledger.spend("ann", WEAK, [three, one]).epsilon == exactly(accounting.epsilon(WEAK, DELTA, 4))
    assert ledger.spend("bob", WEAK, [one]).epsilon == exactly(accounting.epsilon(WEAK, DELTA, 1))
    assert ledger.spent("ann").epsilon == exactly(accounting.epsilon(WEAK, DELTA, 4))


def test_mixed_levels_are_bounded_from_above_and_below(store: LedgerStore) -> None:
    """Above the exact figure, below the plain sum; a one-level budget refuses a second level."""
    ledger = Ledger(store, budget=Budget(500.0, DELTA))
    ledger.spend("ann", WEAK, [draw(2)])
    assert ledger.spent("ann").epsilon == exactly(accounting.epsilon(WEAK, DELTA / 2, 2))
    spent = ledger.spend("ann", STRONG, [draw(5)])
    exact = (Composition.of(WEAK, 2) + Composition.of(STRONG, 5)).epsilon_bounds(DELTA)
    assert exact.lower <= spent.epsilon
    sum_of_both = accounting.epsilon(WEAK, DELTA / 2, 2) + accounting.epsilon(STRONG, DELTA / 2, 5)
    assert spent.epsilon <= sum_of_both
    single = Ledger(MemoryStore(), budget=Budget(500.0, DELTA, mixed=False))
    single.spend("ann", WEAK, [draw()])
    with pytest.raises(BudgetExceededError):
        single.spend("ann", STRONG, [draw()])


@pytest.mark.parametrize("mixed", [True, False])
def test_the_last_token_that_fits_is_the_accountings(store: LedgerStore, mixed: bool) -> None:
    budget = Budget(100.0, DELTA, mixed=mixed)
    fits = capacity(WEAK, 100.0, DELTA / 2 if mixed else DELTA)
    ledger = Ledger(store, budget=budget)
    ledger.spend("ann", WEAK, [draw(fits)])
    spent = ledger.spent("ann")
    assert spent.epsilon <= 100.0
    with pytest.raises(BudgetExceededError) as caught:
        ledger.spend("ann", WEAK, [draw(1)])
    error = caught.value
    assert (error.subject, error.epsilon_budget, error.epsilon_spent) == ("ann", 100.0, spent.epsilon)
    assert error.epsilon_requested > 100.0
    assert ledger.spent("ann") == spent
    ledger.spend("bob", WEAK, [draw(1)])


@pytest.mark.parametrize("mixed", [True, False])
def test_the_tokens_left_are_those_that_can_be_spent(store: LedgerStore, mixed: bool) -> None:
    ledger = Ledger(store, budget=Budget(100.0, DELTA, mixed=mixed))
    assert ledger.tokens_left("ann", WEAK) == capacity(WEAK, 100.0, DELTA / 2 if mixed else DELTA)
    for tokens in (1, 3):
        before = ledger.tokens_left("ann", WEAK)
        ledger.spend("ann", WEAK, [draw(tokens)])
        assert ledger.tokens_left("ann", WEAK) == before - tokens
    left = ledger.tokens_left("ann", STRONG)
    assert (left > 0) is mixed  # of another level
    with pytest.raises(BudgetExceededError):
        ledger.spend("ann", STRONG, [draw(left + 1)])
    if left:
        ledger.spend("ann", STRONG, [draw(left)])
        assert ledger.tokens_left("ann", STRONG) == 0
    with pytest.raises(InvalidRequestError, match="subject"):
        ledger.tokens_left("", WEAK)


def test_a_request_that_never_fits_says_so(store: LedgerStore) -> None:
    ledger = Ledger(store, budget=Budget(10.0, DELTA))
    with pytest.raises(BudgetExceededError, match="never") as caught:
        ledger.spend("ann", WEAK, [draw(10_000)])
    assert caught.value.retry_at is None
    assert ledger.spent("ann").epsilon == 0.0


def test_export_and_erasure(store: LedgerStore) -> None:
    ledger = Ledger(store, budget=Budget(500.0, DELTA))
    ledger.spend("ann", WEAK, [draw(2)])
    ledger.spend("ann", STRONG, [draw(1)])
    exported = json.loads(json.dumps(ledger.export("ann")))
    trials = {round(entry["ratio"], 9): entry["trials"] for entry in exported["entries"]}
    assert trials == {
        round(WEAK.ratio, 9): 2 * WEAK.trials * WEAK.dim,
        round(STRONG.ratio, 9): STRONG.trials * STRONG.dim,
    }
    assert exported["epsilon"] == ledger.spent("ann").epsilon
    assert ledger.erase("ann") is True
    assert ledger.erase("ann") is False
    assert ledger.export("ann")["entries"] == []
    assert ledger.spent("ann").epsilon == 0.0


@pytest.mark.parametrize("subject", ["", "x" * 257, "a\0b", "\ud800", 7, None])
def test_subjects_are_checked(store: LedgerStore, subject: object) -> None:
    with pytest.raises(InvalidRequestError, match="subject"):
        Ledger(store, budget=Budget(1.0)).spend(subject, WEAK, [draw()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", 0), ("epsilon", math.inf), ("epsilon", "1"), ("delta", 0.0), ("delta", 1.0), ("delta", True),
        ("window", timedelta(0)), ("window", 30),
    ],
)  # fmt: skip
def test_budgets_are_checked(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        Budget(**{"epsilon": 1.0, field: value})  # type: ignore[arg-type]


# --- time -----------------------------------------------------------------------------------------


def test_spending_leaves_the_window_and_not_before(store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, store)
    window = timedelta(days=30)
    ledger = Ledger(store, budget=Budget(100.0, DELTA, window))
    fits = capacity(WEAK, 100.0, DELTA / 2)
    first = draw(fits)
    ledger.spend("ann", WEAK, [first])
    with pytest.raises(BudgetExceededError) as caught:
        ledger.spend("ann", WEAK, [draw()])
    retry_at = caught.value.retry_at
    assert retry_at is not None
    wait = retry_at - datetime.now(UTC)
    assert window - timedelta(minutes=2) < wait < window + timedelta(hours=1, minutes=2)
    clock.advance(window - timedelta(seconds=1))
    assert ledger.tokens_left("ann", WEAK) == 0
    with pytest.raises(BudgetExceededError):
        ledger.spend("ann", WEAK, [draw()])
    clock.advance(timedelta(hours=1, seconds=1))
    ledger.spend("ann", WEAK, [draw(fits)])
    # What is sent again after its draw has left the window is charged again.
    with pytest.raises(BudgetExceededError):
        ledger.spend("ann", WEAK, [first])


def test_without_a_window_spending_stays(store: LedgerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, store)
    ledger = Ledger(store, budget=Budget(100.0, DELTA, None))
    ledger.spend("ann", WEAK, [draw()])
    clock.advance(timedelta(days=10_000))
    assert ledger.spent("ann").epsilon == exactly(accounting.epsilon(WEAK, DELTA / 2))
    with pytest.raises(BudgetExceededError) as caught:
        ledger.spend("ann", WEAK, [draw(10_000)])
    assert caught.value.retry_at is None


@pytest.mark.parametrize("jump", [timedelta(days=365), -timedelta(days=365)])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_clock_that_is_set_frees_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: timedelta, reopened: bool
) -> None:
    clock = Clock(monkeypatch)
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(100.0, DELTA))
    ledger.spend("ann", WEAK, [draw(3)])
    spent = ledger.spent("ann").epsilon
    clock.wall += jump.total_seconds()
    if reopened:
        ledger.close()
        ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(100.0, DELTA))
    assert ledger.spent("ann").epsilon == spent
    ledger.close()


def test_after_a_boot_time_does_not_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(100.0, DELTA))
    ledger.spend("ann", WEAK, [draw(3)])
    spent = ledger.spent("ann").epsilon
    clock.boot, clock.since_boot = "boot-2", 5.0
    clock.wall -= timedelta(days=365).total_seconds()
    assert ledger.spent("ann").epsilon == spent
    clock.advance(timedelta(days=31))
    assert ledger.spent("ann").epsilon == 0.0
    ledger.close()


# --- the file -------------------------------------------------------------------------------------


def test_spending_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first = Ledger(SQLiteStore(path), budget=Budget(100.0, DELTA))
    known = draw(2)
    spent = first.spend("ann", WEAK, [known])
    first.close()
    with pytest.raises(LedgerUnavailableError, match="closed"):
        first.spent("ann")
    second = Ledger(SQLiteStore(path), budget=Budget(100.0, DELTA))
    assert second.spend("ann", WEAK, [known]) == spent
    assert second.store.subjects() == ["ann"]
    second.close()


def test_erased_subjects_leave_no_trace_in_the_files(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(SQLiteStore(path), budget=Budget(100.0, DELTA))
    ledger.spend("a-name-to-be-forgotten", WEAK, [draw(2)])
    ledger.erase("a-name-to-be-forgotten")
    for file in tmp_path.iterdir():
        assert b"to-be-forgotten" not in file.read_bytes(), file.name
    ledger.close()


def test_files_that_are_no_ledger_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to look like a file" * 20, encoding="utf-8")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE t (x)")
    other.close()
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version=99")
    newer.close()
    for name, reason in (("text.db", "not a database"), ("other.db", "must be a ledger"), ("newer.db", "99")):
        with pytest.raises(LedgerUnavailableError, match=reason):
            SQLiteStore(tmp_path / name)
    with pytest.raises(LedgerUnavailableError):
        SQLiteStore(tmp_path / "no" / "such" / "directory.db")


@pytest.mark.parametrize("existing", [False, True])
def test_only_the_owner_may_read_the_files(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "ledger.db"
    before = os.umask(0)
    try:
        if existing:
            path.touch(0o664)
        ledger = Ledger(SQLiteStore(path), budget=Budget(100.0, DELTA))
        ledger.spend("ann", WEAK, [draw()])
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm"), 0o600)
    ledger.close()


def replace_file(path: Path) -> None:
    """Put a copy in the place of a file, as an editor or a restored backup does."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    copy.replace(path)


def add_name(path: Path) -> None:
    path.with_suffix(".second").hardlink_to(path)


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.db-shm"])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (Path.unlink, "nothing"),
        (replace_file, "another one"),
        (add_name, "got 2"),
        (lambda path: path.rename(f"{path}.old"), "nothing"),
    ],
)
def test_files_that_change_under_an_open_ledger_stop_it(
    tmp_path: Path, name: str, change: Callable[[Path], object], found: str
) -> None:
    """Spending in a deleted or replaced file would be spending that nobody counts."""
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(100.0, DELTA))
    ledger.spend("ann", WEAK, [draw()])
    change(tmp_path / name)
    for act in (
        lambda: ledger.spend("ann", WEAK, [draw()]),
        lambda: ledger.spent("ann"),
        lambda: ledger.erase("ann"),
        ledger.store.subjects,
    ):
        with pytest.raises(LedgerUnavailableError, match=f"{name} must be .*{found}"):
            act()
    ledger.close()


def test_a_file_that_changes_during_a_transaction_takes_no_spending(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    store = SQLiteStore(path)

    def spend() -> None:
        with store.account("ann") as account:
            account.add(Entry(account.now + 60.0, 1, 1), [b"d" * 16])
            path.unlink()

    with pytest.raises(LedgerUnavailableError, match="got nothing"):
        spend()
    store.close()


def test_a_forked_process_refuses_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(SQLiteStore(path), budget=Budget(100.0, DELTA))
    replace_file(path)

    def spend(refused: Any) -> None:
        try:
            ledger.spend("ann", WEAK, [draw()])
        except LedgerUnavailableError:
            refused.set()

    context = multiprocessing.get_context("fork")
    refused = context.Event()
    child = context.Process(target=spend, args=(refused,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert refused.is_set()
    ledger.close()


def test_a_locked_file_is_waited_for_and_then_reported(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(SQLiteStore(path, busy_timeout=0.2), budget=Budget(100.0, DELTA))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailableError, match="locked"):
        ledger.spend("ann", WEAK, [draw()])
    other.execute("COMMIT")
    other.close()
    ledger.spend("ann", WEAK, [draw()])
    ledger.close()


def _spend_until_refused(path: str, tokens: int, results: multiprocessing.Queue[int]) -> None:
    ledger = Ledger(SQLiteStore(path, busy_timeout=60.0), budget=Budget(100.0, DELTA))
    done = 0
    try:
        while done < 10_000:
            ledger.spend("ann", STRONG, [draw(tokens)])
            done += tokens
    except BudgetExceededError:
        pass
    results.put(done)


def test_several_processes_spend_exactly_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SQLiteStore(path).close()
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[int] = context.Queue()
    processes = [context.Process(target=_spend_until_refused, args=(str(path), 1, results)) for _ in range(3)]
    for process in processes:
        process.start()
    spent = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sum(spent) == capacity(STRONG, 100.0, DELTA / 2) > 50


def test_several_threads_spend_exactly_what_there_is(store: LedgerStore) -> None:
    ledger = Ledger(store, budget=Budget(100.0, DELTA))
    done: list[int] = []

    def spend() -> None:
        try:
            while len(done) < 10_000:
                ledger.spend("ann", STRONG, [draw()])
                done.append(1)
        except BudgetExceededError:
            pass

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(done) == capacity(STRONG, 100.0, DELTA / 2) > 50


def test_a_fork_uses_a_connection_of_its_own(tmp_path: Path) -> None:
    """The child can spend even if a thread of the parent held the lock during the fork."""
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(100.0, DELTA))
    ledger.spend("ann", WEAK, [draw()])
    with ledger.store._held():  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            status = 1
            try:
                ledger.spend("ann", WEAK, [draw()])
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.spent("ann").epsilon == exactly(accounting.epsilon(WEAK, DELTA / 2, 2))
    ledger.spend("ann", WEAK, [draw()])
    ledger.close()


_CHILD = """
import secrets, sys
from client_lib.prompts.types import Draw
from client_lib.errors import LedgerUnavailableError
from client_lib.ledger import Budget, Ledger, SQLiteStore
from del_core.mechanism import Mechanism

if sys.argv[2] != "0":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(SQLiteStore(sys.argv[1]), budget=Budget(1e6, 1e-6))
mechanism = Mechanism.from_mu(4.0, bits=4, dim=32)
while True:
    draw = Draw(secrets.token_bytes(16), 1)
    try:
        ledger.spend("ann", mechanism, [draw])
    except LedgerUnavailableError:
        sys.exit(7)
    sys.stdout.write(draw.id.hex() + "\\n")  # what would be sent now
    sys.stdout.flush()
"""


def recorded(path: Path) -> tuple[set[str], int]:
    """Draws and tokens that the file holds."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        draws = {row[0].hex() for row in connection.execute("SELECT id FROM draws")}
        (trials,) = connection.execute("SELECT coalesce(sum(trials), 0) FROM spending").fetchone()
    connection.close()
    return draws, trials // (WEAK.trials * WEAK.dim)


def run_child(
    path: Path, limit: int, stop: Callable[[subprocess.Popen[str], list[str]], bool]
) -> tuple[list[str], int]:
    """Draw ids that the child reported as spent, and its exit status."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(path), str(limit)], stdout=subprocess.PIPE, text=True, encoding="ascii"
    )
    assert child.stdout is not None
    lines: list[str] = []
    try:
        for line in child.stdout:
            lines.append(line.strip())
            if stop(child, lines):
                break
        lines += [line.strip() for line in child.stdout.read().split()]
        return lines, child.wait(60)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("after", [1, 7, 40])
def test_what_was_spent_survives_kill_9(tmp_path: Path, after: int) -> None:
    """Everything sent is recorded, and at most one draw more."""
    path = tmp_path / "ledger.db"

    def stop(child: subprocess.Popen[str], lines: list[str]) -> bool:
        if len(lines) < after:
            return False
        time.sleep(secrets.randbelow(1000) / 1e6)  # somewhere within a transaction
        child.send_signal(signal.SIGKILL)
        return True

    sent, status = run_child(path, 0, stop)
    assert status == -signal.SIGKILL
    draws, tokens = recorded(path)
    complete = {line for line in sent if len(line) == 32}
    assert complete <= draws
    assert len(draws) <= len(complete) + 1
    assert tokens == len(draws)


def test_a_full_disk_stops_spending_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SQLiteStore(path).close()
    sent, status = run_child(path, 60_000, lambda child, lines: False)
    assert status == 7
    assert sent
    draws, tokens = recorded(path)
    assert set(sent) == draws
    assert tokens == len(sent)
    ledger = Ledger(SQLiteStore(path), budget=Budget(1e6, DELTA))
    ledger.spend("ann", WEAK, [draw()])
    ledger.close()
