"""``delctl ledger``: what a ledger keeps, on real files and a real Redis server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_lib.ledger import Budget, Ledger, open_store
from client_lib.prompts.types import Draw
from del_core.mechanism import Mechanism
from delctl import main
from tests.support.redis_server import RedisServer

MECHANISM = Mechanism.from_mu(4.0, bits=4, dim=32)
BUDGET = Budget(500.0)
OPTIONS = ("--budget-epsilon", "500")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer.running() as running:
        yield running


@pytest.fixture(params=["sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A ledger in which ann has spent 4 tokens and bob 1."""
    where = str(tmp_path / "ledger.db")
    if request.param == "redis":
        where = request.getfixturevalue("redis").url
    ledger = Ledger(open_store(where), budget=BUDGET)
    for subject, tokens in (("bob", 1), ("ann", 4)):
        ledger.spend(subject, MECHANISM, [Draw(secrets.token_bytes(16), tokens)])
    yield where
    for subject in ledger.store.subjects():
        ledger.erase(subject)
    ledger.close()


def spent(place: str, subject: str) -> float:
    ledger = Ledger(open_store(place), budget=BUDGET)
    epsilon = ledger.spent(subject).epsilon
    ledger.close()
    return epsilon


def test_status(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ledger", "status", place, *OPTIONS]) == 0
    shown = capsys.readouterr().out
    ann, bob = spent(place, "ann"), spent(place, "bob")
    assert shown.index("ann") < shown.index("bob")
    assert f"{ann:.2f}" in shown
    assert f"{ann / 500:.1%}" in shown
    assert main.run(["ledger", "status", place, "bob", *OPTIONS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "budget": 500.0,
        "delta": 1e-6,
        "days": 30.0,
        "subjects": [{"subject": "bob", "epsilon": pytest.approx(bob)}],
    }


def test_reading_with_another_window_forgets_nothing(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget of a minute sees nothing soon, but what is kept for thirty days stays."""
    ann = spent(place, "ann")
    for command in (["status", place], ["export", place, "ann"]):
        assert main.run(["ledger", *command, *OPTIONS, "--budget-days", "0.0007"]) == 0
    capsys.readouterr()
    assert spent(place, "ann") == ann > 0


def test_export(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ledger", "export", place, "ann", *OPTIONS]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["subject"] == "ann"
    assert exported["epsilon"] == pytest.approx(spent(place, "ann"))
    assert [entry["trials"] for entry in exported["entries"]] == [4 * MECHANISM.trials * MECHANISM.dim]


def test_erase(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ledger", "erase", place, "ann", "--yes"]) == 0
    assert capsys.readouterr().out == "erased ann\n"
    assert spent(place, "ann") == 0.0
    assert spent(place, "bob") > 0.0
    assert main.run(["ledger", "erase", place, "ann", "--yes"]) == 1
    assert "the ledger has no data of ann" in capsys.readouterr().err


def test_erasing_asks_first(place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["n", "y"])
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: next(answers))
    assert main.run(["ledger", "erase", place, "ann"]) == main.STOPPED
    assert spent(place, "ann") > 0.0
    assert main.run(["ledger", "erase", place, "ann"]) == 0
    assert spent(place, "ann") == 0.0


def test_a_mistyped_file_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "leger.db"
    for command in (["status", str(place), *OPTIONS], ["erase", str(place), "ann", "--yes"]):
        assert main.run(["ledger", *command]) == main.REFUSED
        assert "must be a ledger" in capsys.readouterr().err
    assert not place.exists()


def test_what_is_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no database at all, but long enough to look like a file" * 20)
    assert main.run(["ledger", "status", str(tmp_path / "notes.txt"), *OPTIONS]) == main.FAILED
    assert "not a database" in capsys.readouterr().err
    assert main.run(["ledger", "status", "redis://127.0.0.1:1", *OPTIONS]) == main.FAILED
    assert "ConnectionError" in capsys.readouterr().err
