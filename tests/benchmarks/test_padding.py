"""The measurement of what padding costs runs on the demo, and the documentation quotes the committed run."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import padding

ROOT = Path(__file__).parents[2]


def test_it_measures_every_variant() -> None:
    report = padding.measure(count=3, buckets=(32,))
    assert list(report) == ["strict", "balanced", "open"]
    for rows in report.values():
        plain, padded = rows["without"], rows["bucket 32"]
        assert 1 < plain["perplexity"] < 4096
        assert padded["ratio_low"] <= padded["ratio"] <= padded["ratio_high"]
        assert 0 < padded["added"] < 4


def test_the_documentation_has_the_committed_figures() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results" / "padding.json").read_text("utf-8"))
    assert kept["command"] == "OMP_NUM_THREADS=1 python -m benchmarks.padding --json"
    page = (ROOT / "docs/guides/client.md").read_text("utf-8")
    for variant, rows in kept["results"].items():
        padded = [row for name, row in rows.items() if name != "without"]
        cells = [f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})" for row in padded]
        assert f"| {variant} | {' | '.join(cells)} |" in page
