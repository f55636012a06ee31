"""``delctl trust``, and what ask and proxy refuse without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from delctl.main import run
from tests.support.bundle import make_bundle
from tests.support.malicious import corners
from tests.support.scripted_server import ScriptedServer

ASK = ["ask", "the quick brown fox", "--variant", "strict", "--quiet"]


def test_ask_refuses_another_bundle_until_it_is_accepted(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trust", "show"]) == 0
    assert "Nothing has been accepted." in capsys.readouterr().out
    assert run(ASK) == 0
    scripted.bundle = make_bundle(tmp_path / "other", table_seed=2)
    capsys.readouterr()
    assert run(ASK) == 2
    refused = capsys.readouterr().err
    assert f"delctl trust accept {scripted.url}" in refused
    assert "the SHA-256 of the table must be" in refused
    sent = len(scripted.frames)
    assert run(["trust", "accept", scripted.url, "--fingerprint", "0" * 64, "--yes"]) == 1
    assert run(["trust", "accept", scripted.url, "--yes"]) == 0
    said = capsys.readouterr().out
    assert "Changed since" in said
    assert f"accepted {scripted.bundle.fingerprint}" in said
    assert len(scripted.frames) == sent
    assert run(ASK) == 0
    capsys.readouterr()
    assert run(["trust", "show", scripted.url, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out).values()
    assert record["fingerprint"] == scripted.bundle.fingerprint


def test_forgetting_makes_the_next_offer_a_first_one(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ASK) == 0
    scripted.bundle = make_bundle(tmp_path / "other", table_seed=2)
    assert run(ASK) == 2
    assert run(["trust", "forget", scripted.url]) == 0
    assert run(["trust", "forget", scripted.url]) == 2
    assert "must be a server with a record" in capsys.readouterr().err
    assert run(ASK) == 0


def test_one_call_may_accept(scripted: ScriptedServer, tmp_path: Path) -> None:
    assert run(ASK) == 0
    scripted.bundle = make_bundle(tmp_path / "other", table_seed=2)
    assert run([*ASK, "--accept", "0" * 64]) == 2
    assert run([*ASK, "--accept", scripted.bundle.fingerprint]) == 0
    assert run([*ASK, "--fingerprint", "0" * 64]) != 0
    assert run([*ASK, "--fingerprint", scripted.bundle.fingerprint]) == 0


def test_no_noise_needs_a_higher_limit(
    scripted: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted.bundle = corners(tmp_path / "corners")
    assert run(ASK) != 0
    assert "at most 350" in capsys.readouterr().err
    assert run([*ASK, "--max-epsilon-per-token", "1e6"]) == 0


def test_plain_http_needs_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([*ASK, "--url"], ["proxy", "--port", "0", "--server"], ["trust", "accept"]):
        assert run([*command, "http://192.0.2.1"]) == 2
        assert "--allow-http" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["table", "ceiling", "fingerprint"])
def test_the_proxy_does_not_start_on_a_refused_bundle(
    scripted: ScriptedServer, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ASK) == 0
    options = ["proxy", "--server", scripted.url, "--port", "0"]
    if change == "fingerprint":
        options += ["--fingerprint", "0" * 64]
    elif change == "table":
        scripted.bundle = make_bundle(tmp_path / "other", table_seed=2)
    else:
        scripted.bundle = corners(tmp_path / "corners")
        options += ["--accept", scripted.bundle.fingerprint]
    assert run(options) != 0
    words = {"table": "delctl trust accept", "ceiling": "at most 350", "fingerprint": "0" * 64}
    assert words[change] in capsys.readouterr().err
