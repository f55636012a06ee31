"""A short run of the fault benchmark: a node is lost under load."""

from __future__ import annotations

import pytest

from benchmarks.faults import run


@pytest.mark.cluster
def test_the_loss_of_a_node_under_load() -> None:
    # The mock engine: tests/cluster/test_faults.py kills real ones, and here they would take
    # minutes to start.
    engine = {"engine": {"stand_in": {"step_ms": 5.0}}}
    report = run(seconds=150.0, kinds=iter(["node"]), concurrency=4, pause_s=2.0, settings=engine)
    assert report.kills == {"node": 1}
    assert report.requests > 0
    assert (report.succeeded, report.wrong, report.hung, report.failed) == (report.requests, 0, 0, {})
    assert report.leaked == 0
