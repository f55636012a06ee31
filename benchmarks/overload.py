"""Overload of a replica tenfold: python -m benchmarks.overload [--quick] [--json]

One replica computes everything that it accepts at once (``max_ongoing_requests`` =
``engine.max_num_seqs``), behind the proxy of ``delctl serve``, on the machine of the load
generator. Phases:

    alone       one client, one request after the other
    capacity    one client per slot of the replica: its requests per second are the capacity
    overload    ten times the capacity, open loop: an answer is a whole completion or a 503 at once
    recovery    one client, from the end of the flood
    slow        readers that do not read their stream, one per slot: time until a slot is free
    abandoned   readers that leave after the first event, one per slot: time until a slot is free

The p95 of accepted requests under overload is compared with ``alone``. Memory is the resident
memory of replica, engine and proxy in MiB, sampled during the flood.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import psutil

from benchmarks.serving.systems import stop_tree
from benchmarks.support.flood import Flood
from benchmarks.support.load import Prompts, Round
from benchmarks.support.memory import PeakMemory
from benchmarks.support.served import LEVELS, MODELS, served
from cluster.local import start_local
from del_core.bundle import load_bundle
from deployments.settings import Settings, parse_settings

__all__ = ["run"]

PLACES = 4
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 64
LONG_OUTPUT_TOKENS = 400
TIMES_CAPACITY = 10.0
_MOST_IN_FLIGHT = 512
_ROOM_WITHIN_S = 60.0
_MIB = 1 << 20
_MEASURED = ("ServeReplica", "EngineCore", "haproxy")


class _Generator:
    """Process that generates the load."""

    def __init__(self, settings: Settings, variant: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.support.flood"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say({"bundle": str(settings.bundle_path), "variant": variant})
        self._hear()

    def flood(self, flood: Flood) -> dict[str, Any]:
        """Return the figures of one flood."""
        self._say(asdict(flood))
        self._hear()
        self._say({})
        return self._hear()

    def stop(self) -> None:
        """End the process."""
        stop_tree(self._process)

    def _say(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _is_measured(process: psutil.Process) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(part in line for part in _MEASURED)


class _Readers:
    """Clients that do not read, on plain sockets."""

    def __init__(self, host: str, port: int, prompts: Prompts, places: int) -> None:
        self._address = (host, port)
        self._prompts = prompts
        self._places = places
        self._seed = 0

    def messages(self, output_tokens: int, count: int) -> list[bytes]:
        """Return whole HTTP requests for streams."""
        self._seed += 1
        host, port = self._address
        plan = Round("application", host, port, count, PROMPT_TOKENS, output_tokens, self._seed, 1.0, count)
        return self._prompts.make(plan)

    @contextlib.contextmanager
    def reading_nothing(self) -> Iterator[float]:
        """Open one stream per slot with a minimal receive buffer; return the time of the last."""
        with contextlib.ExitStack() as stack:
            for message in self.messages(LONG_OUTPUT_TOKENS, self._places):
                one = stack.enter_context(socket.socket())
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                one.settimeout(10.0)
                one.connect(self._address)
                one.sendall(message)
            yield time.perf_counter()

    def leaving(self) -> float:
        """Open one stream per slot and leave after the first event; return the last exit's time."""
        with contextlib.ExitStack() as stack:
            for message in self.messages(LONG_OUTPUT_TOKENS, self._places):
                one = stack.enter_context(socket.create_connection(self._address, timeout=30.0))
                one.sendall(message)
                received = b""
                while b"data: " not in received:
                    received += one.recv(65536)
                    if not received.startswith(b"HTTP/1.1 200"[: len(received)]):
                        raise RuntimeError(f"a reader was refused: {received[:200]!r}")
        return time.perf_counter()

    def room_after(self, since: float) -> float:
        """Return the seconds from ``since`` until a short request is accepted again."""
        (message,) = self.messages(1, 1)
        while time.perf_counter() - since < _ROOM_WITHIN_S:
            with socket.create_connection(self._address, timeout=30.0) as one:
                one.sendall(message)
                if one.recv(65536).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - since
            time.sleep(0.005)
        raise RuntimeError(f"there was no room within {_ROOM_WITHIN_S:.0f} s")


def run(settings: Settings, variant: str, *, places: int = PLACES, seconds: float = 20.0) -> dict[str, Any]:
    """Return the figures of one run; other phases take half of the flood's ``seconds``."""
    values = settings.model_dump(mode="json")
    values["engine"]["max_num_seqs"] = places
    values["scaling"]["max_ongoing_requests"] = places
    settings = parse_settings(values)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_local(settings))
        generator = _Generator(settings, variant)
        stack.callback(generator.stop)
        parts = urlsplit(server.url)
        assert parts.hostname is not None
        assert parts.port is not None
        host, port = parts.hostname, parts.port

        def load(seed: int, length: float, clients: int, rate: float | None = None) -> dict[str, Any]:
            return generator.flood(Flood(host, port, PROMPT_TOKENS, OUTPUT_TOKENS, seed, length, clients, rate))

        load(1, 1.0, places)  # to warm up
        alone = load(2, seconds / 2, 1)
        capacity = load(3, seconds / 2, places)
        rate = TIMES_CAPACITY * capacity["accepted"]["rps"]
        measured = [process for process in server.processes() if _is_measured(process)]
        with PeakMemory(measured, every_s=1.0) as memory:
            before = memory.now()
            overload = load(4, seconds, _MOST_IN_FLIGHT, rate)
        recovery = load(5, seconds / 2, 1)
        after = memory.now()
        readers = _Readers(host, port, Prompts(load_bundle(settings.bundle_path), variant), places)
        with readers.reading_nothing() as asked:
            slow_s = readers.room_after(asked)
        readers.room_after(time.perf_counter())
        left = readers.leaving()
        abandoned_s = readers.room_after(left)
        after_abandoned = load(6, seconds / 4, places)
    p95 = {name: phase["accepted"].get("p95_ms") for name, phase in {"alone": alone, "capacity": capacity}.items()}
    return {
        "places": places,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "capacity_rps": capacity["accepted"]["rps"],
        "offered_rps": rate,
        "alone": alone,
        "capacity": capacity,
        "overload": overload,
        "recovery": recovery,
        "p95_ratio_to_alone": overload["accepted"]["p95_ms"] / p95["alone"],
        "p95_ratio_to_capacity": overload["accepted"]["p95_ms"] / p95["capacity"],
        "recovered_p95_ratio": recovery["accepted"]["p95_ms"] / p95["alone"],
        "memory_mb": {"before": before // _MIB, "most": memory.most // _MIB, "after": after // _MIB},
        "room_after_slow_readers_s": slow_s,
        "room_after_abandoned_s": abandoned_s,
        "after_abandoned": after_abandoned,
    }


def faults_of(report: dict[str, Any]) -> list[str]:
    """Return the violations of the promises of docs/guides/serving.md in a report."""
    overload, faults = report["overload"], []
    if set(overload["codes"]) - {"503 overloaded"}:
        faults.append(f"answers under overload: {overload['codes']}")
    for phase in ("alone", "capacity", "overload", "recovery", "after_abandoned"):
        bad = {name: report[phase][name] for name in ("broken", "unfinished", "without_retry_after")}
        if any(bad.values()):
            faults.append(f"{phase}: {bad}")
    if report["p95_ratio_to_alone"] > 2:
        faults.append(f"p95 of accepted requests is {report['p95_ratio_to_alone']:.2f} times the unloaded one")
    if report["recovery"]["codes"]:
        faults.append(f"refusals after the flood: {report['recovery']['codes']}")
    return faults


def _print(report: dict[str, Any]) -> None:
    click.echo(
        f"{report['places']} places, {report['prompt_tokens']} -> {report['output_tokens']} tokens, capacity "
        f"{report['capacity_rps']:.0f}/s, offered {report['offered_rps']:.0f}/s"
    )
    click.echo(f"{'phase':11}{'':10}{'count':>8}{'a second':>10}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
    for phase in ("alone", "capacity", "overload", "recovery"):
        for kind in ("accepted", "refused"):
            figures = report[phase][kind]
            if figures["count"]:
                times = "".join(f"{figures[q]:9.1f}" for q in ("p50_ms", "p95_ms", "p99_ms"))
                click.echo(f"{phase:11}{kind:10}{figures['count']:8}{figures['rps']:10.1f}{times}")
    click.echo(
        f"p95 accepted: {report['p95_ratio_to_alone']:.2f} of one client alone, {report['p95_ratio_to_capacity']:.2f} "
        f"of full places; after the flood {report['recovered_p95_ratio']:.2f}"
    )
    click.echo(f"refusals: {report['overload']['codes']}, memory {report['memory_mb']} MiB")
    click.echo(
        f"room again: {report['room_after_slow_readers_s']:.2f} s after slow readers of {LONG_OUTPUT_TOKENS} tokens "
        f"asked, {report['room_after_abandoned_s']:.3f} s after clients left"
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quick", is_flag=True, help="A flood of 6 seconds; under a minute and a half in all.")
@click.option("--seconds", type=click.FloatRange(1, 600), help="Length of the flood.  [default: 20, quick: 6]")
@click.option("--places", default=PLACES, show_default=True, type=click.IntRange(1, 256), help="Requests at once.")
@click.option("--model", type=click.Choice(MODELS), default="demo", show_default=True)
def main(as_json: bool, quick: bool, seconds: float | None, places: int, model: str) -> None:
    """Flood one replica with ten times its capacity."""
    with tempfile.TemporaryDirectory(prefix="del-bench-") as temporary:
        settings = served(model, Path(temporary))
        report = run(settings, LEVELS[model][0], places=places, seconds=seconds or (6.0 if quick else 20.0))
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report)
    for fault in faults_of(report):
        click.echo(f"not as promised: {fault}", err=True)


if __name__ == "__main__":
    main()
