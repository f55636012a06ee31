"""The client benchmark runs, and (slow) the stated speed and size hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.client import command as benchmark
from benchmarks.client import size as client_size

ROOT = Path(__file__).parents[2]
NUMBERS = ("tokens_per_second_per_core", "ratio_to_random_bytes", "bytes_per_token")
KEYS = {*NUMBERS, "import_seconds", "rss_mb", "bundle_mb", "tokenize_share"}


def check_form(report: dict[str, object]) -> None:
    assert set(report) == KEYS
    for key in NUMBERS:
        figures = report[key]
        assert isinstance(figures, dict)
        assert list(figures) == ["n=1", "n=2", "n=4", "n=8"]
        assert all(figure > 0 for figure in figures.values())
    assert report["bytes_per_token"] == {"n=1": 16, "n=2": 32, "n=4": 64, "n=8": 128}
    assert report["tokenize_share"] > 0  # type: ignore[operator]  # a quotient of two times: see check_promises
    assert 8.2 < report["bundle_mb"] < 9  # type: ignore[operator]  # 32,000 x 128 x 2 bytes and the tokenizer


def test_the_benchmark_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    report = benchmark.measure()
    check_form(report)
    assert report["rss_mb"] < 80  # type: ignore[operator]  # not a matter of how busy the machine is


def test_the_committed_results_have_the_same_form_and_hold_the_promises() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "client.json").read_text("utf-8"))
    assert kept["command"] == "OMP_NUM_THREADS=1 python -m benchmarks.client --json"
    check_promises(kept["results"])
    check_size(kept["install"])


def check_size(report: dict[str, float]) -> None:
    assert report["install_mb"] < 120
    assert report["lean_install_mb"] + report["lean_bytecode_mb"] < 120


def test_the_lock_of_the_client_is_a_part_of_the_tested_one() -> None:
    lean, whole = ((ROOT / "requirements" / f"{name}.lock").read_text("utf-8") for name in ("client", "cpu"))
    lines = [line for line in lean.splitlines() if line and not line.startswith("#")]
    assert set(lines) <= set(whole.splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]}
    assert wanted <= {line.partition("==")[0] for line in lines}


def check_promises(report: dict[str, object]) -> None:
    check_form(report)
    assert report["tokenize_share"] < 1  # type: ignore[operator]
    speed = report["tokens_per_second_per_core"]
    assert isinstance(speed, dict)
    assert speed["n=4"] >= 100_000
    assert speed["n=8"] >= 30_000
    assert report["import_seconds"] < 0.3  # type: ignore[operator]
    assert report["rss_mb"] < 80  # type: ignore[operator]


@pytest.mark.slow
def test_the_promised_figures_hold_here() -> None:
    command = [sys.executable, "-m", "benchmarks.client", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    check_promises(json.loads(done.stdout))


@pytest.mark.slow
def test_the_base_install_is_small_and_needs_no_compiler() -> None:
    report = client_size.measure()
    check_size(report)
    packages = report["packages"]
    assert isinstance(packages, dict)
    assert {"numpy", "tokenizers", "del_core"} <= set(packages)
    assert not {"scipy", "torch", "ray"} & set(packages)
