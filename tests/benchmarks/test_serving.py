"""The comparison with vLLM's own server runs, gives whole rows, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving.table import markdown
from benchmarks.support.http import Answer, connection, post_message, read_timeline
from benchmarks.support.served import LEVELS
from del_core.bundle import load_bundle
from del_core.demo import bundle_path, smollm2_bundle_path

COLUMNS = {"system", "concurrency", "prompt_tokens", "output_tokens", "rps", "ttft_p50_ms", "ttft_p95_ms"}
COLUMNS |= {"itl_p50_ms", "ratio_to_vllm_serve", "failed", "cpu_ms_per_request", "soft_prompt_hit_rate"}
PROCESSES = {
    "engine": {"engine", "generator"},
    "vllm_serve": {"engine", "server", "generator"},
    "application": {"engine", "replica", "proxy", "cluster", "generator"},
}


@pytest.mark.cluster
@pytest.mark.timeout(900)  # three engines start at once, beside other tests
def test_every_system_answers_every_request(tmp_path: Path) -> None:
    """Three systems, a closed and an open loop; a second run resumes from the state file."""
    state, out = tmp_path / "state.jsonl", tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.serving", "--json", "--rounds", "1", "--seconds", "0.3"]
    command += ["--cells", "16:8:4,open@8:8:4", "--state", str(state), "--out", str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    rows = json.loads(done.stdout)
    assert [(row["system"], row["loop"]) for row in rows] == [
        (name, loop) for loop in ("closed", "open") for name in PROCESSES
    ]
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["failed"] == 0
        assert row["requests"] > 0
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p95_ms"]
        assert row["itl_p50_ms"] >= 0  # all events of so short an answer may arrive in one packet
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
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    assert json.loads(again.stdout) == rows
    assert not again.stderr


def test_levels_of_a_model_have_lines_of_their_own() -> None:
    row = {"loop": "closed", "concurrency": 1, "prompt_tokens": 8, "output_tokens": 4, "rps": 2.0}
    row |= {"ratio_to_vllm_serve": 1.0, "ttft_p50_ms": 5.0, "ttft_ratio_to_vllm_serve": 1.0, "itl_p50_ms": 1.0}
    rows = [row | {"system": name, "variant": level} for level in ("open", "strict") for name in PROCESSES]
    lines = markdown(rows).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| *open*", "| *strict*"]
    assert {line.count(" | ") for line in lines if "---" not in line} == {8}


def test_the_levels_that_benchmarks_ask_exist() -> None:
    for model, bundle in {"demo": bundle_path(), "smollm2": smollm2_bundle_path()}.items():
        assert set(LEVELS[model]) <= set(load_bundle(bundle).variants)
    adapters = [load_bundle(smollm2_bundle_path()).adapter(level) is not None for level in LEVELS["smollm2"]]
    assert adapters == [True, False], "the first has an adapter, the second none"


def test_events_are_dated_by_the_packets_that_end_them() -> None:
    """Chunks and events that packets cut anywhere are put together again."""
    usage = b'"usage":{"completion_tokens":3}'
    events = [b'data: {"choices":[{}]}\n\n', b'data: {"choices":[{}],' + usage + b"}\n\n", b"data: [DONE]\n\n"]
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    comment = b": keep-alive\n\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in (*events, comment)) + b"0\r\n\r\n"
    first_end = raw.index(events[0]) + len(events[0])
    for size in (1, 7, len(raw)):
        packets = [(float(start), raw[start : start + size]) for start in range(0, len(raw), size)]
        timeline = read_timeline(-1.0, Answer(packets))
        assert timeline.tokens == 3
        assert timeline.events[0] == (first_end - 1) // size * size
        assert len(timeline.events) == 2
    with pytest.raises(ValueError, match="ended early"):
        read_timeline(0.0, Answer([(0.0, raw.replace(b"[DONE]", b"{    }"))]))
    with pytest.raises(ValueError, match="no streamed success"):
        read_timeline(0.0, Answer([(0.0, b"HTTP/1.1 503 No\r\n\r\n")]))


async def test_connections_are_kept_and_opened_anew() -> None:
    """Answers with length, in chunks, split anywhere, ended by close, and truncated."""
    sized = b"HTTP/1.1 503 No\r\nContent-Length: 4\r\nRetry-After: 7\r\n\r\nbusy"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    script = [sized, chunked, sized.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), chunked, b"", chunked[:-9]]
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        while script and await reader.readuntil(b"hello"):
            for byte in (answer := script.pop(0)):
                writer.write(bytes([byte]))
                await writer.drain()
            if b"close" in answer or not answer.endswith((b"busy", b"0\r\n\r\n")):
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        message = post_message(host, port, b"hello")
        async with connection(host, port) as one:
            first, second, third = [await one.post(message) for _ in range(3)]
            assert (first.status, first.body, first.header("retry-after"), opened) == (503, b"busy", "7", 1)
            assert (second.status, second.body, second.chunks[0][1]) == (200, b"abcde", b"abc")
            assert (third.body, (await one.post(message)).body, opened) == (b"busy", b"abcde", 2)
            with pytest.raises(ConnectionError, match="cut off"):
                await one.post(message)
            script.insert(0, chunked)
            assert (await one.post(message)).status == 200
            script[:0] = [b""]
            with pytest.raises(ConnectionError):
                await one.post(message, retry=True)
