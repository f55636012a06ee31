"""``delctl inspect``: recomputed guarantees, verified checksums, and what a person reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from del_core import accounting
from del_core.bundle import load_bundle, replace_audit
from delctl.main import run
from tests.support.bundle import make_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "bundle"
    make_bundle(path)
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_json_holds_recomputed_guarantees(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundle), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    loaded = load_bundle(bundle)
    assert report["fingerprint"] == loaded.fingerprint
    assert [item["name"] for item in report["variants"]] == list(loaded.variants)
    for item in report["variants"]:
        mechanism, delta = loaded.mechanism(item["name"]), item["delta"]
        assert delta == loaded.variants[item["name"]].guarantees.delta
        assert item["epsilon"] == accounting.epsilon(mechanism, delta)
        assert item["epsilon"] != item["epsilon_stated"], "the bundle of this test states another figure on purpose"
        assert item["epsilon_32_tokens"] == accounting.epsilon(mechanism, delta, 32)
        assert item["gdp_epsilon"] == accounting.gdp_epsilon(accounting.mu(mechanism), delta)
        assert item["output_scale"] * mechanism.ratio == pytest.approx(1.0)
        assert item["bytes_per_token"] == mechanism.row_bytes
    sizes = {path.relative_to(bundle).as_posix(): path.stat().st_size for path in bundle.rglob("*.*") if path.is_file()}
    assert report["files"] == {name: size for name, size in sizes.items() if not name.endswith("manifest.json")}


def test_text_names_what_matters(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out
    loaded = load_bundle(bundle)
    assert "\x1b" not in text, "no escape sequences where nobody watches"
    assert loaded.fingerprint in text
    for name in loaded.variants:
        mechanism = loaded.mechanism(name)
        line = next(line for line in text.partition("Guarantees")[2].splitlines() if line.startswith(name))
        assert f"{accounting.epsilon(mechanism, 1e-6):.2f}" in line
        assert f"{accounting.epsilon(mechanism, 1e-6, 32):.2f}" in line
        assert f"{accounting.gdp_epsilon(accounting.mu(mechanism), 1e-6):.2f}" in line
    assert "not measured" in text


def test_a_promise_that_the_noise_does_not_keep_is_pointed_out(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["inspect", str(bundle)])
    assert "Warning: the manifest promises epsilon 2.5000 for strict; its noise gives 12." in capsys.readouterr().out


def test_audits_are_shown_with_interval_data_and_date(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate = {"success": 0.1234, "low": 0.1, "high": 0.15, "tokens": 4096}
    audit = {"nearest": rate, "data": "held-out text", "date": "2026-11-24", "leakage_bits": 1.5, "x": "\x1b[31m"}
    replace_audit(bundle, {"open": audit})
    assert run(["inspect", str(bundle)]) == 0
    text = capsys.readouterr().out.partition("Audit")[2]
    for part in ("12.3%", "10.0% to 15.0%", "4096 tokens, held-out text, 2026-11-24", "leakage_bits = 1.5"):
        assert part in text
    assert "\x1b" not in text, "what a bundle says cannot steer the terminal"


def test_the_client_part_alone(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundle / "client"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fingerprint"] == load_bundle(bundle).fingerprint
    assert all(name.startswith("client/") for name in report["files"])


@pytest.mark.parametrize("name", ["client/table.safetensors", "server/decoder-open.safetensors", "manifest.json"])
def test_an_altered_file_is_named(name: str, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    assert run(["inspect", str(bundle)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"delctl: {name}: ")


def test_no_such_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "must be a bundle's directory or one of demo, tiny, smollm2, got nothing there" in capsys.readouterr().err
