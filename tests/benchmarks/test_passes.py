"""A short run of ``python -m benchmarks.passes``."""

from __future__ import annotations

from benchmarks.passes import measure


def test_costs_of_passes() -> None:
    report = measure(3)
    assert set(report["ms"]) == {"request", "sign", "finish", "take", "check", "spend"}
    assert report["bytes"]["request for 100"] == report["bytes"]["answer with 100"] == 100 * 259 + 4
    assert report["bytes"]["header with a pass"] < 600
