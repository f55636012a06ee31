"""A short run of the overload benchmark: accepted requests complete, others are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overload import run
from benchmarks.support.served import LEVELS, served


@pytest.mark.slow
def test_ten_times_too_much_is_refused_and_forgotten(tmp_path: Path) -> None:
    report = run(served("tiny", tmp_path), LEVELS["tiny"][0], places=4, seconds=3.0)
    for phase in ("alone", "capacity", "overload", "recovery", "after_abandoned"):
        found = report[phase]
        assert found["accepted"]["count"] > 0, phase
        assert (found["broken"], found["unfinished"], found["without_retry_after"]) == (0, 0, 0), phase
    assert set(report["overload"]["codes"]) == {"503 overloaded"}
    assert report["recovery"]["codes"] == {}
