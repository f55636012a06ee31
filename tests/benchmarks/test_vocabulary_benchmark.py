"""A small run of the vocabulary benchmark: memory is not quadratic in the vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(vocabulary: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.vocabulary", "--vocabulary", str(vocabulary), "--dim", "16", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def test_memory_is_blockwise() -> None:
    small, large = run(4_000), run(12_000)
    assert set(small) == {"vocabulary_epsilon_seconds", "token_epsilons_seconds", "vocabulary_curve_seconds", "peak_mb"}
    # All pairs in one array of doubles would be 122 MiB and 1,098 MiB; blocks have one size.
    assert large["peak_mb"] - small["peak_mb"] < 400
