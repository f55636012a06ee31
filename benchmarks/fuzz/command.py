"""Fuzzing of parser, HTTP surface, client: python -m benchmarks.fuzz [--server] [--quick] [--json]

1. Parser: libFuzzer, guided by the coverage of ``del_core`` (atheris), from valid frames of the
   demo's bundle.
2. Frames: the corpus of the parser's fuzzing, and mutations of it and of valid frames, sent over
   HTTP to a real server: HAProxy, Ray Serve, vLLM.
3. HTTP: requests with wrong line, headers, framing or body, sent as bytes to HAProxy and directly
   to the replica's port.

With ``--server``, malicious servers answer the client instead; see ``benchmarks.fuzz.server``.

No answer may have a status of 500 or more except 503, every error has a specified code, and no
connection may hang. Afterwards the same processes run, every slot is free, and a completion equals
the one before. Everything else is reported and ends the program with status 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import psutil

from benchmarks.fuzz.archives import small_bundle
from benchmarks.fuzz.frames import good_frames, long_frame
from benchmarks.fuzz.http import exchange, requests
from benchmarks.fuzz.mutations import mutated
from benchmarks.fuzz.server import ServerFuzzReport, fuzz_client
from benchmarks.support.http import connection, post_all, post_message
from cluster.local import LocalServer, start_local
from del_core.bundle import Bundle, load_bundle
from del_core.errors import ERROR_STATUS
from deployments.settings import Settings, parse_settings

__all__ = ["FuzzReport", "fuzz_http", "fuzz_parser", "fuzz_server"]

_WATCHED = ("VLLM::EngineCore", "ray::ServeReplica", "ray::ServeController")
_CONNECTIONS = 8
_SLOTS = 64

T = TypeVar("T")


@dataclass
class FuzzReport:
    """Result of a run: counts, and findings, of which there should be none."""

    seed: int = 0
    parser_runs: int = 0
    parser_coverage: int = 0
    parser_corpus: int = 0
    parser_seconds: float = 0.0
    frames: int = 0
    frames_seconds: float = 0.0
    frame_answers: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    requests_seconds: float = 0.0
    request_answers: dict[str, dict[str, int]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


# --- the parser ---------------------------------------------------------------------------


def fuzz_parser(bundle: Path, corpus: Path, runs: int, seed: int, report: FuzzReport) -> None:
    """Fuzz the parser in its own process; ``corpus`` receives inputs that increase coverage."""
    for index, frame in enumerate(good_frames(load_bundle(bundle))):
        (corpus / f"good-{index}").write_bytes(frame)
    began = time.monotonic()
    options = [f"-runs={runs}", f"-seed={seed}", "-max_len=8192", "-timeout=10", "-rss_limit_mb=2048"]
    command = [sys.executable, "-m", "benchmarks.fuzz.parser", str(bundle.resolve()), str(corpus.resolve())]
    ended = subprocess.run(
        [*command, *options, "-print_final_stats=1", f"-artifact_prefix={corpus.resolve()}/finding-"],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    said = ended.stdout + ended.stderr
    executed = re.search(r"stat::number_of_executed_units: (\d+)", said)
    coverage = re.findall(r"cov: (\d+)", said)
    report.parser_runs = int(executed[1]) if executed else 0
    report.parser_coverage = int(coverage[-1]) if coverage else 0
    report.parser_corpus = len(list(corpus.iterdir()))
    report.parser_seconds = round(time.monotonic() - began, 1)
    found = [path.read_bytes().hex() for path in corpus.glob("finding-*")]
    report.findings += [f"parser: input {one}" for one in found]
    if ended.returncode or report.parser_runs < runs:
        cause = said[said.find("Uncaught Python exception") :][:2000] if "Uncaught" in said else said[-2000:]
        report.findings.append(f"parser: ended with {ended.returncode} after {report.parser_runs} runs: {cause}")


# --- the server ---------------------------------------------------------------------------


def fuzz_server(server: LocalServer, bundle: Bundle, frames: Iterable[bytes], report: FuzzReport) -> None:
    """Send frames; check every answer, and the server afterwards."""
    host, port = _address(server)
    answers: Counter[str] = Counter()
    sent = list(frames)
    with _Unshaken(server, bundle, report):
        began = time.monotonic()
        for index, answer in asyncio.run(post_all(host, port, sent, connections=_CONNECTIONS)):
            code = "ok"
            if answer.status != 200:
                try:
                    code = json.loads(answer.body)["error"]["code"]
                except (ValueError, KeyError, TypeError):
                    code = f"untyped {answer.status}"
                if ERROR_STATUS.get(code) != answer.status or (answer.status >= 500 and answer.status != 503):
                    report.findings.append(f"frame: {answer.status} {code} for {sent[index].hex()[:2000]}")
            answers[code] += 1
        report.frames_seconds = round(time.monotonic() - began, 1)
    report.frames = sum(answers.values())
    report.frame_answers = dict(answers.most_common())


def fuzz_http(server: LocalServer, bundle: Bundle, count: int, seed: int, report: FuzzReport) -> None:
    """Send ``count`` requests, half of them past the proxy; check answers and server."""
    addresses = {"proxy": _address(server)}
    with suppress(StopIteration):
        addresses["replica"] = next(replica_addresses(server))
    frames = good_frames(bundle)
    with _Unshaken(server, bundle, report):
        began = time.monotonic()
        for number, (name, (host, port)) in enumerate(addresses.items()):
            share = count // len(addresses)
            answers: Counter[str] = Counter()

            async def one(request: bytes, name: str = name, host: str = host, port: int = port) -> None:
                try:
                    status = await exchange(host, port, request)
                except TimeoutError:
                    status = -1
                answers["closed" if status is None else "hung" if status < 0 else str(status)] += 1  # noqa: B023
                if status is not None and (status < 0 or (status >= 500 and status != 503)):
                    report.findings.append(f"http, {name}: {status} for {request[:1000]!r}")

            asyncio.run(_in_parallel(one, requests(frames, share, seed + number), 4 * _CONNECTIONS))
            report.requests += share
            report.request_answers[name] = dict(answers.most_common())
        report.requests_seconds = round(time.monotonic() - began, 1)


async def _in_parallel(work: Callable[[bytes], Awaitable[None]], items: Iterator[bytes], workers: int) -> None:
    async def worker() -> None:
        for item in items:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())


def _address(server: LocalServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def replica_addresses(server: LocalServer) -> Iterator[tuple[str, int]]:
    """Return the addresses on which replicas listen; none behind Serve's own proxy."""
    for process in server.processes():
        try:
            if not " ".join(process.cmdline()).startswith("ray::ServeReplica"):
                continue
            environment = process.environ()
            first = int(environment.get("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", 0))
            last = int(environment.get("RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT", 0))
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN and first <= connection.laddr.port <= last:
                    yield "127.0.0.1", connection.laddr.port
        except psutil.Error:
            continue


class _Unshaken:
    """Check on exit that processes, slots and completions of the server are unchanged."""

    def __init__(self, server: LocalServer, bundle: Bundle, report: FuzzReport) -> None:
        self._server, self._report = server, report
        self._frame = long_frame(bundle, 16)
        self._host, self._port = _address(server)
        self._before: Any = None

    def __enter__(self) -> None:
        # Serve restarts HAProxy when it learns of a replica: compare processes after that.
        self._before = (_steady(self._processes), self._completion())

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            return
        after = (_steady(self._processes), self._completion())
        if after != self._before:
            self._report.findings.append(f"server: was {self._before!r} and is {after!r}")
        # Every slot is free: as many completions as slots, at once, are all accepted.
        answers = asyncio.run(post_all(self._host, self._port, [self._frame] * _SLOTS, connections=_SLOTS))
        statuses = Counter(answer.status for _, answer in answers)
        if statuses != {200: _SLOTS}:
            self._report.findings.append(f"server: {_SLOTS} completions at once were answered {dict(statuses)}")

    def _processes(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {name: [] for name in (*_WATCHED, "haproxy")}
        for process in self._server.processes():
            with suppress(psutil.Error):
                line = process.name() if process.name() == "haproxy" else " ".join(process.cmdline())
                for name, ids in found.items():
                    if line.startswith(name):
                        ids.append(process.pid)
        return found

    def _completion(self) -> Any:
        async def ask() -> Any:
            async with connection(self._host, self._port) as one:
                answer = await one.post(post_message(self._host, self._port, self._frame))
            return json.loads(answer.body).get("choices", answer.status)

        return asyncio.run(ask())


def _steady(look: Callable[[], T], *, for_s: float = 4.0, within_s: float = 30.0) -> T:
    """Return the result of ``look`` once it has not changed for a while."""
    began = since = time.monotonic()
    seen = look()
    while time.monotonic() - since < for_s and time.monotonic() - began < within_s:
        time.sleep(0.25)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()
    return seen


# --- the run ------------------------------------------------------------------------------


def run(settings: Settings, runs: int, frames: int, count: int, seed: int) -> FuzzReport:
    """Run all three parts."""
    report = FuzzReport(seed=seed)
    bundle = load_bundle(settings.bundle_path)
    with tempfile.TemporaryDirectory() as directory:
        corpus = Path(directory)
        fuzz_parser(settings.bundle_path, corpus, runs, seed, report)
        click.echo(f"parser: {report.parser_runs} inputs, {len(report.findings)} findings", err=True)
        found = [path.read_bytes() for path in sorted(corpus.iterdir())]
    random.Random(seed).shuffle(found)
    found = found[:frames]
    with start_local(settings) as server:
        starts: Sequence[bytes] = [*good_frames(bundle) * 4, *found]
        fuzz_server(server, bundle, chain(found, mutated(starts, frames - len(found), seed)), report)
        click.echo(f"server: {report.frames} frames, {len(report.findings)} findings", err=True)
        fuzz_http(server, bundle, count, seed, report)
        click.echo(f"http: {report.requests} requests, {len(report.findings)} findings", err=True)
    return report


@click.command()
@click.option("--runs", default=1_000_000, show_default=True, help="Inputs of the parser.")
@click.option("--frames", default=100_000, show_default=True, help="Frames for the running server.")
@click.option("--requests", "count", default=20_000, show_default=True, help="HTTP requests for the running server.")
@click.option("--server", "of_client", is_flag=True, help="Fuzz the client with malicious servers instead.")
@click.option("--answers", default=100_000, show_default=True, help="Answers of malicious servers.")
@click.option("--sockets", default=4_000, show_default=True, help="Those of them that arrive over sockets.")
@click.option("--workers", default=1, show_default=True, help="Processes that take the answers.")
@click.option("--seed", default=1, show_default=True, help="Chooses all of them.")
@click.option("--quick", is_flag=True, help="A hundredth of each.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")
def main(seed: int, quick: bool, as_json: bool, of_client: bool, **sizes: int) -> None:
    """Fuzz a real server, or the client with --server; status 1 if anything was found."""
    size = {name: value // (100 if quick else 1) for name, value in sizes.items()}
    report: FuzzReport | ServerFuzzReport
    if of_client:
        with tempfile.TemporaryDirectory() as directory:
            bundle = small_bundle(Path(directory) / "bundle")
            report = fuzz_client(bundle, size["answers"], size["sockets"], seed, sizes["workers"])
    else:
        report = run(parse_settings({}), size["runs"], size["frames"], size["count"], seed)
    click.echo(json.dumps(asdict(report), indent=None if as_json else 2))
    sys.exit(bool(report.findings))


if __name__ == "__main__":
    main()
