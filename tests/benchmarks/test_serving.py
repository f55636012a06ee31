"""The comparison with vLLM's own server runs, gives whole rows, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks._support.sse import read_timeline
from benchmarks.serving.table import markdown

COLUMNS = {"system", "concurrency", "prompt_tokens", "output_tokens", "rps", "ttft_p50_ms", "ttft_p95_ms"}
COLUMNS |= {"itl_p50_ms", "ratio_to_vllm_serve", "failed", "cpu_ms_per_request", "soft_prompt_hit_rate"}
PROCESSES = {
    "engine": {"engine", "generator"},
    "vllm_serve": {"engine", "server", "generator"},
    "application": {"engine", "replica", "proxy", "cluster", "generator"},
}


@pytest.mark.cluster
def test_every_system_answers_every_request(tmp_path: Path) -> None:
    """Three systems, one closed and one open loop; and the state file makes a second run measure nothing."""
    state, out = tmp_path / "state.jsonl", tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.serving", "--json", "--rounds", "1", "--seconds", "0.3"]
    command += ["--cells", "16:8:4,open@8:8:4", "--state", str(state), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    rows = json.loads(done.stdout)
    assert [(row["system"], row["loop"]) for row in rows] == [
        (name, loop) for loop in ("closed", "open") for name in PROCESSES
    ]
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["failed"] == 0
        assert row["requests"] > 0
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"]
        assert row["itl_p50_ms"] > 0
        assert row["ratio_to_vllm_serve"] > 0
        assert PROCESSES[row["system"]] <= row["cpu_ms_per_request"].keys()
        # All but the very first requests find the soft prompt in the cache.
        if row["system"] != "vllm_serve":
            assert 0.5 < row["soft_prompt_hit_rate"] <= 1
    assert len(state.read_text().splitlines()) == len(rows) + 1  # and one of the run
    assert json.loads(out.read_text()) == rows
    table = markdown(rows)
    assert len(table.splitlines()) == 2 + len(rows) // 3
    assert "| closed | 16 | 8 -> 4 |" in table
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(again.stdout) == rows
    assert not again.stderr


def test_events_are_dated_by_the_packets_that_end_them() -> None:
    """Chunks and events that packets cut anywhere are put together again."""
    usage = b'"usage":{"completion_tokens":3}'
    events = [b'data: {"choices":[{}]}\n\n', b'data: {"choices":[{}],' + usage + b"}\n\n", b"data: [DONE]\n\n"]
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    first_end = raw.index(events[0]) + len(events[0])
    for size in (1, 7, len(raw)):
        packets = [(float(start), raw[start : start + size]) for start in range(0, len(raw), size)]
        timeline = read_timeline(-1.0, packets)
        assert timeline.tokens == 3
        assert timeline.events[0] == (first_end - 1) // size * size
        assert len(timeline.events) == 2
    with pytest.raises(ValueError, match="ended early"):
        read_timeline(0.0, [(0.0, raw.replace(b"[DONE]", b"{    }"))])
    with pytest.raises(ValueError, match="no streamed success"):
        read_timeline(0.0, [(0.0, b"HTTP/1.1 503 No\r\n\r\n")])
