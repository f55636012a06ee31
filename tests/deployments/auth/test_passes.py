"""The record of passes: once each, also at once, after restarts, and for each name and day."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deployments.auth.pass_ledger import DAY_S, PassLedger, PassLedgerError, ledger_path
from deployments.sections import PassSettings, SettingsError
from deployments.settings import Settings, load_settings, parse_settings
from tests.support.passes import issuer_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = ledger_path(tmp_path / "key.json")
    PassLedger.create(made)
    return made


def test_one_of_many_at_once_spends_a_pass(path: Path) -> None:
    """As two clusters that were started with the same files would try."""
    nonces = [secrets.token_bytes(32) for _ in range(20)]

    def spend(_: int) -> list[bool]:
        ledger = PassLedger(path)
        try:
            return [ledger.spend(nonce) for nonce in nonces]
        finally:
            ledger.close()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(spend, range(4)))
    assert [sum(tries) for tries in zip(*found, strict=True)] == [1] * len(nonces)
    assert not any(PassLedger(path).spend(nonce) for nonce in nonces)


def test_names_are_counted_by_day(path: Path) -> None:
    now = 20_000.5 * DAY_S
    ledger = PassLedger(path, clock=lambda: now)
    assert ledger.give("ann", 10, 7)
    assert not ledger.give("ann", 10, 4)
    assert ledger.give("ann", 10, 3)
    assert not ledger.give("bob", 10, 11)
    assert ledger.give("bob", 10, 10)
    now -= DAY_S  # a clock that is set back
    assert not ledger.give("ann", 10, 1)
    now += 2 * DAY_S
    assert ledger.give("ann", 10, 10)
    assert not PassLedger(path, clock=lambda: now).give("ann", 10, 1)


def test_the_record_is_its_owners_and_never_made_anew(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        PassLedger.create(path)
    path.unlink()
    with pytest.raises(PassLedgerError, match="delctl keys passes"):
        PassLedger(path)
    assert not path.exists()
    path.write_bytes(b"")
    with pytest.raises(PassLedgerError, match="version"):
        PassLedger(path)


def test_no_name_stands_beside_a_pass(path: Path) -> None:
    ledger = PassLedger(path)
    nonce = secrets.token_bytes(32)
    ledger.give("ann", 10, 1)
    ledger.spend(nonce)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM spent").fetchall() == [(nonce,)]
        assert connection.execute("SELECT name, passes FROM given").fetchall() == [("ann", 1)]
        (tables,) = connection.execute("SELECT group_concat(name) FROM sqlite_master").fetchone()
    assert set(tables.split(",")) == {"spent", "given", "sqlite_autoindex_given_1"}


def test_settings_name_the_files_and_need_keys(tmp_path: Path) -> None:
    issuer_key().save(tmp_path / "key.json")
    hashes = ["sha256:" + "0" * 64]
    (tmp_path / "config.yaml").write_text(
        f"keys: {{names: {{ann: {{hashes: {hashes}, passes_per_day: 5}}}}}}\npasses: {{key_file: key.json}}\n"
    )
    settings: Settings = load_settings(tmp_path / "config.yaml")
    ((key, path),) = settings.passes.load()
    assert (key.config, path) == (issuer_key().config, tmp_path / "key.json")
    with pytest.raises(SettingsError, match="keys buy passes"):
        parse_settings({"passes": {"key_file": "key.json"}}).check_access(loopback=True)
    for wrong in ({"required": True}, {"former_key_file": "key.json"}):
        with pytest.raises(SettingsError, match="key_file must be given"):
            parse_settings({"passes": wrong})
    with pytest.raises(SettingsError, match="delctl keys passes"):
        PassSettings(key_file=str(tmp_path / "config.yaml")).load()
