"""All faults at once: killed servers, cut connections, 429, 503, 500, clock jumps, full disks.

Several users of one client, and one ledger, go on through all of it. Afterwards:

- every call has ended in an answer that is right, or in an error of the family, and none took long;
- whatever the server has seen was charged before, and all that was charged was charged exactly
  once;
- no frame carried other noise than the one that was drawn for its prompt.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from client_lib import AsyncClient, Client, DELClientError, EncodedPrompt, LedgerUnavailableError, Timeout
from client_lib.ledger import Budget, Ledger, SQLiteStore
from del_core.wire import PrivateSegment
from tests.client_lib.conftest import SHORT_PAUSES
from tests.support.relay import Relay
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens, reset, status

SECRET = "my test was positive"
SUBJECTS = ("ann", "bob")
TOKENS = 12
LIMITS = Timeout(connect=2, read=5, first_token=20, total=25)
LONGEST_S = 60.0
"""Far above the total limit: what takes longer hangs."""


@dataclass
class Record:
    """What the users did and saw."""

    sent: dict[bytes, tuple[str, EncodedPrompt]] = field(default_factory=dict)
    """By draw: whose it is, and the prompt that it belongs to."""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, subject: str, encoded: EncodedPrompt) -> None:
        with self.lock:
            self.sent.update({draw.id: (subject, encoded) for draw in encoded.draws})

    def end(self, name: str, took: float, text: str | None = None) -> None:
        with self.lock:
            self.outcomes[name] += 1
            if took > LONGEST_S:
                self.wrong.append(f"{name} after {took:.0f} s")
            if text is not None and text != expected_text(expected_tokens(TOKENS)):
                self.wrong.append(f"a wrong answer of {len(text)} characters")


class Weather:
    """Brings a fault every few milliseconds, and clear sky in between, until it is stopped."""

    def __init__(
        self, relay: Relay, server: ScriptedServer, store: SQLiteStore, record: Record, chooser: random.Random
    ) -> None:
        self.clock = 0.0
        self._record = record
        self.brought: Counter[str] = Counter()
        self._relay, self._server, self._store, self._chooser = relay, server, store, chooser
        self.seen_all = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextlib.contextmanager
    def blowing(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(30)
            assert not self._thread.is_alive()

    def _run(self) -> None:
        faults: list[Callable[[], None]] = [
            self.killed_server, self.cut_connections, self.storm, self.jump, self.full_disk, self.dropped_requests,
        ]  # fmt: skip
        while not self._stop.wait(self._chooser.random() * 0.05):
            fault = self._chooser.choice(faults)
            self.brought[fault.__name__] += 1
            fault()
            if len(self.brought) == len(faults):
                self.seen_all.set()

    def killed_server(self) -> None:
        self._relay.kill()
        self._stop.wait(self._chooser.random() * 0.05)
        self._relay.revive()

    def cut_connections(self) -> None:
        self._relay.cutting = self._chooser.random()
        self._stop.wait(self._chooser.random() * 0.3)
        self._relay.cutting = 0.0

    def storm(self) -> None:
        now = {"retry-after": "0"}
        kinds = [
            error(429, "rate_limit_exceeded", now),
            error(503, "overloaded", now),
            error(500, "internal_error"),
            error(409, "busy", now),
            status(408, now),
            status(502, {}, b"<html>"),
        ]
        self._server.script.extend(self._chooser.choices(kinds, k=self._chooser.randrange(1, 12)))

    def dropped_requests(self) -> None:
        """The next requests get no answer: their connections are reset."""
        self._server.script.extend([reset] * self._chooser.randrange(1, 4))

    def jump(self) -> None:
        """The time of day jumps by up to a year."""
        self.clock += self._chooser.uniform(-1, 1) * 365 * 86_400

    def full_disk(self) -> None:
        """SQLite finds no room for another page; until a draw has needed one, the first time."""
        with self._store._held():
            connection = self._store._open()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        self._stop.wait(self._chooser.random() * 0.1)
        end = time.monotonic() + LONGEST_S
        while not self._record.outcomes[LedgerUnavailableError.__name__] and time.monotonic() < end:
            if self._stop.wait(0.005):
                break
        with self._store._held():
            self._store._open().execute("PRAGMA max_page_count = 1000000")


def calls(rounds: int, weather: Weather) -> Iterator[int]:
    """At least ``rounds`` calls, and more until every fault has occurred."""
    yield from range(rounds)
    yield from itertools.takewhile(lambda _: not weather.seen_all.is_set(), range(100 * rounds))


def use_client(client: Client, weather: Weather, rounds: int, seed: int, record: Record) -> None:
    chooser = random.Random(seed)
    encoded, subject = None, SUBJECTS[0]
    for _ in calls(rounds, weather):
        if encoded is None or chooser.random() < 0.7:  # else the caller tries the same prompt once more
            encoded, subject = client.encode(SECRET * chooser.randrange(1, 6), variant="open"), chooser.choice(SUBJECTS)
            record.add(subject, encoded)
        mine, started, name, text = client.with_options(subject=subject), time.monotonic(), "answered", None
        try:
            if chooser.random() < 0.5:
                text = mine.complete(encoded, variant="open", max_tokens=TOKENS).text
            else:
                with mine.stream(encoded, variant="open", max_tokens=TOKENS) as stream:
                    text = "".join(chunk.text for chunk in stream)
        except DELClientError as failure:
            name = type(failure).__name__
        except Exception as failure:  # the one thing that must not happen
            record.wrong.append(repr(failure))
        record.end(name, time.monotonic() - started, text)


async def use_async_client(client: AsyncClient, weather: Weather, rounds: int, seed: int, record: Record) -> None:
    chooser = random.Random(seed)
    encoded, subject = None, SUBJECTS[0]
    for _ in calls(rounds, weather):
        if encoded is None or chooser.random() < 0.7:
            encoded = await client.encode(SECRET * chooser.randrange(1, 6), variant="open")
            subject = chooser.choice(SUBJECTS)
            record.add(subject, encoded)
        mine, started, name, text = client.with_options(subject=subject), time.monotonic(), "answered", None
        try:
            if chooser.random() < 0.5:
                text = (await mine.complete(encoded, variant="open", max_tokens=TOKENS)).text
            else:
                async with mine.stream(encoded, variant="open", max_tokens=TOKENS) as stream:
                    text = "".join([chunk.text async for chunk in stream])
        except DELClientError as failure:
            name = type(failure).__name__
        except Exception as failure:
            record.wrong.append(repr(failure))
        record.end(name, time.monotonic() - started, text)


def run(
    kind: str, seed: int, rounds: int, users: int, server: ScriptedServer, path: Path, patch: pytest.MonkeyPatch
) -> tuple[Counter[str], Counter[str]]:
    """Run once; return the outcomes and the faults. Fails if a result is lost, doubled or wrong."""
    chooser = random.Random(seed)
    store = SQLiteStore(path / "ledger.db")
    ledger = Ledger(store, budget=Budget(1e9, 1e-6))
    record = Record()
    relay = Relay(urlsplit(server.url).port or 0, random.Random(seed + 1))
    weather = Weather(relay, server, store, record, chooser)
    real = time.time
    patch.setattr(time, "time", lambda: real() + weather.clock)
    options: dict[str, Any] = {"cache_dir": path / "cache", "ledger": ledger, "subject": "ann", "timeout": LIMITS}
    options["retry"] = SHORT_PAUSES
    seeds = [1000 * seed + user for user in range(users)]
    with relay.running():
        if kind == "sync":
            with Client(relay.url, **options) as client:
                client.bundle()
                threads = [
                    threading.Thread(target=use_client, args=(client, weather, rounds, one, record)) for one in seeds
                ]
                with weather.blowing():
                    for thread in threads:
                        thread.start()
                    for thread in threads:
                        thread.join(rounds * LONGEST_S)
                assert not any(thread.is_alive() for thread in threads)
        else:

            async def main() -> None:
                async with AsyncClient(relay.url, **options) as client:
                    await client.bundle()
                    with weather.blowing():
                        await asyncio.gather(*(use_async_client(client, weather, rounds, one, record) for one in seeds))

            asyncio.run(main())
    patch.undo()
    ledger.close()
    assert record.wrong == []
    check_books(path / "ledger.db", record, server)
    return record.outcomes, weather.brought


def check_books(path: Path, record: Record, server: ScriptedServer) -> None:
    """Every draw sent was charged, once, and to its own subject."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        charged = {(subject, bytes(name)) for subject, name in connection.execute("SELECT subject, id FROM draws")}
        spent = dict(connection.execute("SELECT subject, sum(trials) FROM spending GROUP BY subject"))
    drawn = {(subject, draw_id) for draw_id, (subject, _) in record.sent.items()}
    assert charged <= drawn
    mechanism = server.bundle.mechanism("open")
    expected: Counter[str] = Counter()
    for subject, draw_id in charged:
        (tokens,) = [draw.tokens for draw in record.sent[draw_id][1].draws if draw.id == draw_id]
        expected[subject] += tokens * mechanism.trials * mechanism.dim
    assert spent == dict(expected)
    by_counts = {
        segment.codes.tobytes(): (subject, draw.id)
        for subject, encoded in record.sent.values()
        for segment, draw in zip(
            [one for one in encoded.segments if isinstance(one, PrivateSegment)], encoded.draws, strict=True
        )
    }
    seen = {
        segment.codes.tobytes()
        for frame in server.frames
        for segment in server.decode(frame).segments
        if isinstance(segment, PrivateSegment)
    }
    assert seen <= set(by_counts)  # no other noise than what was drawn
    assert {by_counts[counts] for counts in seen} <= charged


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_short_storm(kind: str, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, brought = run(kind, 1, 40, 3, server, tmp_path, monkeypatch)
    assert outcomes["answered"] >= 20
    assert outcomes[LedgerUnavailableError.__name__] >= 1
    assert len(brought) == 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_long_storm(
    kind: str, seed: int, server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes, brought = run(kind, 10 + seed, 400, 6, server, tmp_path, monkeypatch)
    assert sum(outcomes.values()) >= 2400
    assert outcomes["answered"] >= 500
    assert outcomes[LedgerUnavailableError.__name__] >= 1
    assert len(brought) == 6
