"""The measurement of the cost of padding runs on the demo."""

from __future__ import annotations

from benchmarks import padding


def test_it_measures_every_variant() -> None:
    report = padding.measure(count=3, buckets=(32,))
    assert list(report) == ["strict", "balanced", "open"]
    for rows in report.values():
        plain, padded = rows["without"], rows["bucket 32"]
        assert 1 < plain["perplexity"] < 4096
        assert padded["ratio_low"] <= padded["ratio"] <= padded["ratio_high"]
        assert 0 < padded["added"] < 4
