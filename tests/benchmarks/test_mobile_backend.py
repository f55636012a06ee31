"""A short run of ``python -m benchmarks.mobile_backend``."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mobile_backend


def test_both_paths_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(mobile_backend, "_USERS", (2,))
    report = mobile_backend.measure(rounds=1, messages=2)
    assert [(row["path"], row["users"]) for row in report["paths"]] == [("client", 2), ("backend", 2)]
    for row in report["paths"]:
        assert row["answers_per_s"] > 0
        assert 0 < row["first_text_p50_ms"] <= row["answer_p50_ms"] <= row["answer_p95_ms"]
