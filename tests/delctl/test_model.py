"""``delctl model``: list, check, and refusals; downloads are tested with the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from delctl import main
from tests.support.gguf_file import write_gguf


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main.run(["model", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_check_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "check", "demo", "--json")
    assert (status, json.loads(out)) == (0, {"ok": True, "problems": []})
    status, out, _ = run(capsys, "check", str(tmp_path), "--json")
    assert status == 2
    report = json.loads(out)
    assert report["ok"] is False
    assert len(report["problems"]) == 1
    assert report["problems"][0].startswith("config.json is missing")


def test_a_gguf_file_becomes_a_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    out_dir = tmp_path / "tiny"
    status, out, _ = run(capsys, "get", str(tmp_path / "tiny.gguf"), "--out", str(out_dir), "--json")
    assert (status, json.loads(out)) == (0, {"directory": str(out_dir)})
    status, _, err = run(capsys, "get", str(tmp_path / "tiny.gguf"), "--out", str(out_dir))
    assert status != 0
    assert "directory must not exist yet" in err


def test_refusals_say_what_is_allowed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = run(capsys, "get", "gpt-5")
    assert status == 2
    assert "must be one of smollm2" in err
    write_gguf(tmp_path / "tiny.gguf")
    status, _, err = run(capsys, "get", str(tmp_path / "tiny.gguf"))
    assert status == 2
    assert "--out is needed" in err
    status, _, err = run(capsys, "check", "smollm2")
    assert status == 2
    assert "delctl model get smollm2" in err


def test_the_list_names_license_and_place(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list", "--json")
    assert status == 0
    assert json.loads(out)["smollm2"] == {
        "title": "SmolLM2-135M-Instruct (4-bit weights, dequantized)",
        "license": "Apache-2.0",
        "directory": None,
    }
