"""``delctl log``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client_lib.trust.log import Head, is_consistent, is_included
from delctl.main import run
from tests.support.bundle import make_bundle


def test_a_log_of_two_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(tmp_path / "log")
    first, second = make_bundle(tmp_path / "first"), make_bundle(tmp_path / "second", table_seed=2)
    heads = []
    for name in ("first", "second"):
        assert run(["log", "append", log, str(tmp_path / name)]) == 0
        heads.append(Head.parse(capsys.readouterr().out.strip()))
    options = ["--head", str(heads[0]), "--fingerprint", second.fingerprint]
    assert run(["log", "verify", log, *options]) == 0
    assert capsys.readouterr().out.strip() == str(heads[1])
    assert run(["log", "prove", log, "--fingerprint", first.fingerprint]) == 0
    shown = json.loads(capsys.readouterr().out)
    proof = [bytes.fromhex(step) for step in shown["proof"]]
    assert is_included(shown["entry"].encode(), shown["index"], heads[1], proof)
    assert run(["log", "prove", log, "--since", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert is_consistent(heads[0], heads[1], [bytes.fromhex(step) for step in shown["proof"]])
    assert run(["log", "verify", log, "--fingerprint", "0" * 64]) == 1
    assert run(["log", "verify", log, "--head", f"1:{'0' * 64}"]) == 1
    assert "entries were changed" in capsys.readouterr().err
    assert run(["log", "prove", log]) == 2
