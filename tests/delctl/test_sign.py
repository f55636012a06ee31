"""``delctl keys signing`` and ``delctl sign``."""

from __future__ import annotations

from pathlib import Path

import pytest

from del_core.bundle import load_bundle
from delctl.main import run
from tests.support.bundle import make_bundle


def test_a_key_signs_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.pem"
    make_bundle(tmp_path / "bundle")
    assert run(["keys", "signing", str(key)]) == 0
    public = capsys.readouterr().out.split()[-1]
    assert key.stat().st_mode & 0o777 == 0o600
    assert run(["sign", str(tmp_path / "bundle"), "--key", str(key)]) == 0
    assert public in capsys.readouterr().out
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.client.signature is not None
    assert bundle.client.signature.key == public
    bundle.client.signature.verify(bundle.client.manifest)
    assert run(["sign", str(tmp_path / "bundle" / "client"), "--key", str(key)]) == 0  # again, the client part
    assert {entry.name for entry in tmp_path.iterdir()} == {"key.pem", "bundle"}


def test_a_key_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.pem"
    key.write_text("mine")
    assert run(["keys", "signing", str(key)]) == 2
    assert "must be a new file" in capsys.readouterr().err
    assert key.read_text() == "mine"


def test_other_keys_and_damaged_bundles_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(tmp_path / "bundle")
    other = tmp_path / "other.pem"
    other.write_text("SECRET")
    assert run(["sign", str(tmp_path / "bundle"), "--key", str(other)]) == 2
    said = capsys.readouterr().err
    assert "must be an Ed25519 private key" in said
    assert "SECRET" not in said
    key = tmp_path / "key.pem"
    assert run(["keys", "signing", str(key)]) == 0
    (tmp_path / "bundle" / "client" / "tokenizer.json").write_text("{}")
    assert run(["sign", str(tmp_path / "bundle"), "--key", str(key)]) == 2
    assert not (tmp_path / "bundle" / "client" / "signature.json").exists()


def test_a_directory_that_holds_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, empty = tmp_path / "key.pem", tmp_path / "empty"
    empty.mkdir()
    assert run(["keys", "signing", str(key)]) == 0
    for command in (["sign", str(empty), "--key", str(key)], ["log", "append", str(tmp_path / "log"), str(empty)]):
        assert run(command) == 2
        said = capsys.readouterr().err
        wanted = "manifest.json: must be present beside table.safetensors, tokenizer.json"
        assert f"{wanted}, got no such file in {empty}" in said
