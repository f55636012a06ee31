"""The attacks on padded length run on the demo, and find what nothing hides."""

from __future__ import annotations

from benchmarks import length


def test_it_measures_every_fill() -> None:
    report = length.measure(count=2, samples=(2000,))
    assert list(report) == ["strict", "balanced", "open"]
    for fills in report.values():
        assert set(fills) == {"line feed", "sample 2000", "prior", "ratio"}
        for row in (fills[name][attack] for name in fills if name != "ratio" for attack in length.ATTACKS):
            assert row["low"] <= row["exact"] <= row["high"]
            assert 0 <= row["error"] < length.BUCKET
    # Weak noise hides the end of repeated line feeds from nobody.
    assert report["open"]["line feed"]["tokens"]["error"] < 2
