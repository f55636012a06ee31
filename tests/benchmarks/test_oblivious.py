"""A short run of ``python -m benchmarks.oblivious``."""

from __future__ import annotations

from benchmarks.oblivious import measure


def test_costs_of_a_relay() -> None:
    """The sealed messages are a little longer, whatever the prompt."""
    report = measure(2)
    for size in ("16 tokens", "512 tokens"):
        direct, sealed, relay = (report[size][way] for way in ("direct", "sealed", "relay"))
        assert abs(relay["request_bytes"] - sealed["request_bytes"]) < 50  # the name of the server in the request
        assert 150 < relay["request_bytes"] - direct["request_bytes"] < 600
        assert 50 < relay["response_bytes"] - direct["response_bytes"] < 600
        assert 0 < relay["first_chunk_ms"] <= relay["stream_ms"]
