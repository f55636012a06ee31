"""Cost of proxy, replicas and controller: python -m benchmarks.router [--quick] [--json]

Two parts, since everything shares the cores of one machine:

    stack          a fixed number of replicas with mock engines that take almost no time, behind
                   HAProxy, flooded: requests per second, and CPU per request of each part minus
                   its use without load. The machine is saturated, so the CPU is a cost, but the
                   rate is not a limit of the proxy. Without load: CPU and memory of each part by
                   number of replicas.
    proxy alone    HAProxy on a core of its own (``benchmarks.serving.proxy_alone``): requests per
                   second of that core if the whole request is forwarded and the answer is minimal,
                   which is an upper bound for streams; and the connections that it holds.

A completion is measured at two lengths. The difference gives the cost of an event and of a request
without events. At the pace of the mock engine an event holds four tokens, as with the default
coalescing (50 ms) at 12 ms per step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
import psutil

from benchmarks.serving.proxy_alone import completion, proxy_alone
from benchmarks.support.http import connection, post_message
from client_lib import private
from client_lib.prompts.encoder import Encoder
from cluster.local import LocalServer, start_local
from del_core import demo
from del_core.bundle import load_bundle
from del_core.wire import Sampling
from deployments.settings import Settings, parse_settings

__all__ = ["run_alone", "run_stack"]

PROMPT = "Dear sister, the doctor says that my fever will not go down before the end of the week"
OUTPUT_TOKENS = (16, 256)
CLIENTS = 32
_SETTLED_SHARE, _SETTLE_WITHIN_S = 0.15, 60.0

#: What a process is, by how its command line begins.
_KINDS = {
    "ray::ServeReplica": "replicas",
    "ray::ServeController": "controller",
    "ray::HAProxyManager": "proxy's manager",
    "ray::ProxyActor": "fallback proxy",
}


def _settings(replicas: int) -> Settings:
    pace = {"step_ms": 0.25, "step_ms_per_request": 0.0, "prompt_token_ms": 0.0, "quantum_ms": 1.0}
    return parse_settings(
        {
            "engine": {"stand_in": pace, "max_num_seqs": 64},
            "scaling": {
                "min_replicas": replicas,
                "max_replicas": replicas,
                "max_ongoing_requests": 4 * CLIENTS,
                "graceful_shutdown_timeout_s": 5,
                "num_cpus": 0.01,
            },
        }
    )


def _kind(process: psutil.Process) -> str:
    if process.name() == "haproxy":
        return "proxy"
    line = " ".join(process.cmdline())
    return next((kind for start, kind in _KINDS.items() if line.startswith(start)), "rest of Ray")


def _cpu_s(server: LocalServer) -> Counter[str]:
    """Return CPU seconds so far, by kind of process."""
    used: Counter[str] = Counter()
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used[_kind(process)] += times.user + times.system
    return used


def _memory_mb(server: LocalServer) -> dict[str, list[int]]:
    """Return the unique set size of processes, by kind."""
    found: dict[str, list[int]] = {}
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            found.setdefault(_kind(process), []).append(process.memory_full_info().uss // 2**20)
    return found


def _shares(server: LocalServer, seconds: float) -> dict[str, float]:
    """Return CPU seconds per second, by kind of process."""
    before, began = _cpu_s(server), time.monotonic()
    time.sleep(seconds)
    took, after = time.monotonic() - began, _cpu_s(server)
    return {kind: (after[kind] - before[kind]) / took for kind in after}


def _settle(server: LocalServer) -> None:
    """Wait until the start is over: two samples of a second differ little."""
    deadline, last = time.monotonic() + _SETTLE_WITHIN_S, float("inf")
    while time.monotonic() < deadline:
        now = sum(_shares(server, 1.0).values())
        if abs(now - last) < _SETTLED_SHARE * max(now, 0.1):
            return
        last = now


def _frame(output_tokens: int) -> bytes:
    bundle = load_bundle(demo.bundle_path())
    encoder = Encoder(bundle.client)
    sampling = Sampling(max_tokens=output_tokens, ignore_eos=True, stream=True)
    return encoder.frame(encoder.encode([private(PROMPT)], "balanced"), sampling)


async def _flood(url: str, frame: bytes, seconds: float) -> tuple[int, int, float]:
    """Return completed requests, events and seconds of clients that stream repeatedly."""
    host, _, port = url.removeprefix("http://").partition(":")
    message = post_message(host, int(port), frame)
    requests = events = 0
    began = time.monotonic()

    async def one() -> None:
        nonlocal requests, events
        async with connection(host, int(port)) as connected:
            while time.monotonic() < began + seconds:
                answer = await connected.post(message, retry=True)
                if answer.status != 200 or not answer.body.endswith(b"data: [DONE]\n\n"):
                    raise RuntimeError(f"answered {answer.status} {answer.body[-200:]!r}")
                requests += 1
                events += answer.body.count(b"data: ") - 1

    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return requests, events, time.monotonic() - began


def _under_load(server: LocalServer, frame: bytes, seconds: float, idle: dict[str, float]) -> dict[str, Any]:
    before = _cpu_s(server)
    requests, events, took = asyncio.run(_flood(server.url, frame, seconds))
    used = _cpu_s(server)
    return {
        "requests": requests,
        "requests_per_s": round(requests / took, 1),
        "events_per_request": round(events / requests, 1),
        "cpu_ms_per_request": {
            kind: round(1000 * (used[kind] - before[kind] - idle.get(kind, 0.0) * took) / requests, 3)
            for kind in sorted(used)
        },
        "cpu_share": round((used - before).total() / took, 3),
    }


def _by_event(loads: dict[int, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return CPU ms per event and per request without events, from two lengths of completion."""
    short, long = loads[min(loads)], loads[max(loads)]
    apart = long["events_per_request"] - short["events_per_request"]
    found = {}
    for kind, cost in short["cpu_ms_per_request"].items():
        event = (long["cpu_ms_per_request"].get(kind, 0.0) - cost) / apart
        found[kind] = {"event": round(event, 4), "request": round(cost - event * short["events_per_request"], 3)}
    return found


def run_stack(
    replica_counts: Sequence[int], *, seconds: float = 10.0, output_tokens: Sequence[int] = OUTPUT_TOKENS
) -> list[dict[str, Any]]:
    """Return a row for each number of replicas of the whole stack."""
    rows: list[dict[str, Any]] = []
    for replicas in replica_counts:
        with start_local(_settings(replicas), proxy="haproxy") as server:
            _settle(server)
            idle = _shares(server, 2 * seconds)
            memory = _memory_mb(server)
            loads = {tokens: _under_load(server, _frame(tokens), seconds, idle) for tokens in output_tokens}
            row: dict[str, Any] = {
                "replicas": replicas,
                "start_s": round(server.startup_s, 1),
                "idle_cpu_share": {kind: round(share, 4) for kind, share in sorted(idle.items())},
                "replica_mb": round(statistics.median(memory["replicas"])),
                "memory_mb": {kind: sum(each) for kind, each in sorted(memory.items())},
                "by_output_tokens": loads,
                "cpu_ms": _by_event(loads),
            }
        rows.append(row)
        click.echo(json.dumps(row), err=True)
    return rows


def run_alone(*, seconds: float = 10.0, connections: int = 6000) -> dict[str, Any]:
    """Measure HAProxy on one core: own answers, forwarded completions, connections."""
    with proxy_alone() as proxy:
        report: dict[str, Any] = {
            "own_answer": proxy.saturate(b"GET /-/healthz HTTP/1.1\r\nhost: x\r\n\r\n", seconds),
            "forwarded": proxy.saturate(completion(_frame(OUTPUT_TOKENS[0])), seconds),
            "connections": proxy.hold(connections),
        }
    click.echo(json.dumps(report), err=True)
    return report


@click.command()
@click.option(
    "--replicas",
    "counts",
    type=click.IntRange(1),
    multiple=True,
    help="These numbers of replicas; 1, 4, 16, 32 if none.",
)
@click.option("--seconds", default=10.0, show_default=True, help="Length of each measurement; without load, twice it.")
@click.option("--quick", is_flag=True, help="1, 4 and 16 replicas, 4 seconds each: under five minutes.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def main(counts: tuple[int, ...], seconds: float, quick: bool, as_json: bool) -> None:
    """Cost of proxy, replicas and controller, with mock engines."""
    if quick:
        seconds = 4.0
    counts = counts or ((1, 4, 16) if quick else (1, 4, 16, 32))
    report = {"proxy_alone": run_alone(seconds=seconds), "stack": run_stack(counts, seconds=seconds)}
    click.echo(json.dumps(report, indent=None if as_json else 2))


if __name__ == "__main__":
    main()
