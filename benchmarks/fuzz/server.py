"""Malicious servers against the client: python -m benchmarks.fuzz --server [--quick] [--json]

Most answers reach the client through httpcore's HTTP parser in memory, the rest over sockets of
this machine, where they may also drip, hang or be reset. Each belongs to a completion, a stream, a
turn of a conversation, a list of models or the download of a bundle, synchronous or asynchronous.

A finding is whatever leaves a call besides a valid result and an error of the family, a call that
runs past its limits, and memory that grows by more than 256 MiB.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import resource
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import httpx

from benchmarks.fuzz.answers import Answers
from client_lib import AsyncClient, Client, Completion, DELClientError, RetryPolicy, Timeout
from del_core.bundle import ClientBundle, load_client

__all__ = ["ServerFuzzReport", "fuzz_client"]

_OPERATIONS = ("complete", "complete", "stream", "stream", "turn", "models", "bundle")
_TOTAL_S = 3.0
_SLACK_S = 20.0  # of other programs on the machine
_CPU_S = 3.0
_MEMORY_MB = 256
_MAX_TOKENS = 4
_WARM_UP = 200  # calls that load what is loaded late
_PROMPT = "my doctor told me that the test was positive, 12345 times. "
_RESET = struct.pack("ii", 1, 0)


@dataclass
class ServerFuzzReport:
    """Counts by operation and outcome, extremes, and findings, of which there should be none."""

    seed: int = 0
    answers: int = 0
    over_sockets: int = 0
    seconds: float = 0.0
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    slowest_cpu_s: float = 0.0
    slowest_s: float = 0.0
    memory_before_mb: int = 0
    memory_peak_mb: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, part: ServerFuzzReport) -> None:
        """Add the counts and findings of a worker; extremes are those of the worst."""
        for operation, counts in part.outcomes.items():
            sums = Counter(self.outcomes.get(operation, {})) + Counter(counts)
            self.outcomes[operation] = dict(sums.most_common())
        self.outcomes = dict(sorted(self.outcomes.items()))
        if part.memory_peak_mb - part.memory_before_mb >= self.memory_peak_mb - self.memory_before_mb:
            self.memory_before_mb, self.memory_peak_mb = part.memory_before_mb, part.memory_peak_mb
        self.slowest_s = max(self.slowest_s, round(part.slowest_s, 2))
        self.slowest_cpu_s = max(self.slowest_cpu_s, round(part.slowest_cpu_s, 2))
        self.findings += part.findings


# --- in memory ----------------------------------------------------------------------------


class _Pieces(httpcore.NetworkStream):
    """A connection that delivers the pieces of an answer, and then ends, hangs or breaks."""

    def __init__(self, pieces: Iterator[bytes], chooser: random.Random) -> None:
        self._pieces = pieces
        self._rest = b""
        self._end = chooser.choice((b"", b"", b"", httpcore.ReadError, httpcore.ReadTimeout))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._rest or next((piece for piece in self._pieces if piece), b"")
        if not data and not isinstance(self._end, bytes):
            raise self._end
        self._rest = data[max_bytes:]
        return data[:max_bytes]

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


class _Memory(httpcore.NetworkBackend):
    """Connections to a server in memory; each gets the next answer."""

    def __init__(self, pieces: Iterator[Iterator[bytes]], chooser: random.Random) -> None:
        self._answers, self._chooser = pieces, chooser

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:
        return _Pieces(next(self._answers), self._chooser)


class _MemoryTransport(httpx.BaseTransport):
    """httpcore's pool over :class:`_Memory`; ``answers`` is set before each call."""

    def __init__(self) -> None:
        self.answers: Iterator[Iterator[bytes]] = iter(())
        self.chooser = random.Random()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pool = httpcore.ConnectionPool(network_backend=_Memory(self.answers, self.chooser))
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        response = pool.handle_request(
            httpcore.Request(request.method, url, headers=request.headers.raw, content=request.stream)
        )
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response))


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._response.stream)  # type: ignore[arg-type]

    def close(self) -> None:
        self._response.close()


class _AsyncMemoryTransport(httpx.AsyncBaseTransport):
    """The same for the asynchronous client: the pool's bytes come from memory, so nothing waits."""

    def __init__(self, inner: _MemoryTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        return httpx.Response(response.status_code, headers=response.headers, stream=_AsyncBody(response))


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self):  # type: ignore[no-untyped-def]
        for piece in self._response.stream:  # type: ignore[union-attr]
            yield piece
            await asyncio.sleep(0)  # where a real connection waits, and where a limit takes effect

    async def aclose(self) -> None:
        self._response.close()


# --- over sockets -------------------------------------------------------------------------


class _SocketServer:
    """A server on loopback; every connection gets the next answer, whatever was asked."""

    def __init__(self) -> None:
        self.answers: Iterator[Iterator[bytes]] = iter(())
        self.chooser = random.Random()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @contextmanager
    def running(self) -> Iterator[_SocketServer]:
        self._thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                pieces = next(self.answers, iter(()))
                how = self.chooser.choice(("whole",) * 12 + ("drip", "hang", "reset", "close first"))
            threading.Thread(target=_deliver, args=(connection, pieces, how), daemon=True).start()


def _deliver(connection: socket.socket, pieces: Iterator[bytes], how: str) -> None:
    with connection, suppress(OSError, StopIteration):
        connection.settimeout(_TOTAL_S + _SLACK_S)
        if how == "close first":
            return
        connection.recv(1 << 16)
        if how == "drip":
            first = next(pieces) + next(pieces, b"")
            for byte in first[:2000]:
                connection.sendall(bytes((byte,)))
                time.sleep(0.003)
        for piece in pieces:
            connection.sendall(piece)
        if how == "hang":
            while connection.recv(1 << 16):
                pass
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


# --- calls ------------------------------------------------------------------------------------


@dataclass
class _Peers:
    """Clients of both kinds of one server; those of a bundle are made for each call."""

    url: str
    options: dict[str, Any]
    transports: tuple[httpx.BaseTransport | None, httpx.AsyncBaseTransport | None]
    set_answers: Callable[[Iterator[Iterator[bytes]], random.Random], None]


def _limits() -> dict[str, Any]:
    return {
        "timeout": Timeout(connect=1.0, read=1.0, total=_TOTAL_S),
        "retry": RetryPolicy(max_retries=1, first_pause=0.001, longest_wait=0.01),
        "max_resumes": 1,
        "variant": "open",
    }


def _run_sync(client: Client, operation: str) -> object:
    match operation:
        case "complete":
            return client.complete(_PROMPT, max_tokens=_MAX_TOKENS)
        case "stream":
            with client.stream(_PROMPT, max_tokens=_MAX_TOKENS) as stream:
                for _ in stream:
                    pass
                return stream.completion
        case "turn":
            return client.conversation().complete(_PROMPT, max_tokens=_MAX_TOKENS)
        case "models":
            return client.models()
        case _:
            client.bundle()
            return client.encode(_PROMPT * 50, variant=next(iter(client.variants())))


async def _run_async(client: AsyncClient, operation: str) -> object:
    match operation:
        case "complete":
            return await client.complete(_PROMPT, max_tokens=_MAX_TOKENS)
        case "stream":
            async with client.stream(_PROMPT, max_tokens=_MAX_TOKENS) as stream:
                async for _ in stream:
                    pass
                return stream.completion
        case "turn":
            return await client.conversation().complete(_PROMPT, max_tokens=_MAX_TOKENS)
        case "models":
            return await client.models()
        case _:
            await client.bundle()
            return await client.encode(_PROMPT * 50, variant=next(iter(await client.variants())))


def _problem(result: object) -> str | None:
    """Return what is wrong with a result that a client has accepted."""
    if not isinstance(result, Completion):
        return None
    if len(result.token_ids) > _MAX_TOKENS or len(result.text) > 512 * _MAX_TOKENS:
        return "a completion that is too long"
    texts = (result.text, result.finish_reason, result.request_id or "")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return "a completion that is no Unicode"
    if not all(text.isprintable() and text.isascii() for text in texts[1:]):
        return "a completion whose id or reason is not printable"
    return None


class _Fuzzer:
    """Makes calls and records their ends."""

    def __init__(self, bundle: ClientBundle, seed: int, report: ServerFuzzReport) -> None:
        self._bundle, self._seed, self._report = bundle, seed, report
        self._answers = Answers(bundle)
        self._outcomes: dict[str, Counter[str]] = {}
        self._runner = asyncio.Runner()

    def run(self, numbers: Sequence[int], peers: _Peers) -> None:
        """Make one call for each number, which determines operation, client and answers."""
        shared = {**peers.options, "bundle": self._bundle.path, **_limits()}
        with Client(peers.url, transport=peers.transports[0], **shared) as client:
            other = AsyncClient(peers.url, transport=peers.transports[1], **shared)
            for number in numbers:
                self._one(number, peers, client, other)
            self._runner.run(other.close())

    def _one(self, number: int, peers: _Peers, client: Client, other: AsyncClient) -> None:
        chooser = random.Random(self._seed * 1_000_000_007 + number)
        operation = chooser.choice(_OPERATIONS)
        is_async = chooser.random() < 0.3
        made = "complete" if operation == "turn" else operation
        peers.set_answers(self._made(number, made, chooser), chooser)
        began, cpu = time.monotonic(), time.thread_time()
        outcome = "answered"
        try:
            with tempfile.TemporaryDirectory() if operation == "bundle" else nullcontext() as cache:
                result = self._call(operation, is_async, peers, client, other, cache)
            if (problem := _problem(result)) is not None:
                self._found(number, operation, problem)
        except DELClientError as error:
            outcome = type(error).__name__
            if not str(error).isprintable() or len(str(error)) > 2000:
                self._found(number, operation, "an error whose message is not printable")
        except Exception as error:
            outcome = "outside the family"
            self._found(number, operation, repr(error)[:500])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "outside the family"
            self._found(number, operation, f"{type(error).__name__}, no Exception")
        took, cpu = time.monotonic() - began, time.thread_time() - cpu
        if took > _TOTAL_S + _SLACK_S or cpu > _CPU_S:
            self._found(number, operation, f"took {took:.1f} s, {cpu:.1f} s of the processor")
        report = self._report
        report.slowest_s, report.slowest_cpu_s = max(report.slowest_s, took), max(report.slowest_cpu_s, cpu)
        self._outcomes.setdefault(operation, Counter())[outcome] += 1

    def _made(self, number: int, operation: str, chooser: random.Random) -> Iterator[Iterator[bytes]]:
        """Yield answers; a defect of theirs would pass for a broken connection."""
        while True:
            try:
                yield self._answers.answer(operation, chooser)
            except Exception as error:
                self._found(number, operation, f"the fuzzer failed: {error!r}")
                yield iter(())

    def _call(
        self, operation: str, is_async: bool, peers: _Peers, client: Client, other: AsyncClient, cache: str | None
    ) -> object:
        if cache is None:
            return self._runner.run(_run_async(other, operation)) if is_async else _run_sync(client, operation)
        options = {**_limits(), "cache_dir": Path(cache)}
        if not is_async:
            with Client(peers.url, transport=peers.transports[0], **options) as fresh:
                return _run_sync(fresh, operation)

        async def run() -> object:
            async with AsyncClient(peers.url, transport=peers.transports[1], **options) as fresh:
                return await _run_async(fresh, operation)

        return self._runner.run(run())

    def _found(self, number: int, operation: str, what: str) -> None:
        self._report.findings.append(f"answer {number} of seed {self._seed}, {operation}: {what}")

    def close(self) -> None:
        """Write the counts into the report."""
        self._runner.close()
        self._report.outcomes = {operation: dict(counts) for operation, counts in self._outcomes.items()}


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def fuzz_client(bundle: Path, count: int, over_sockets: int, seed: int, workers: int = 1) -> ServerFuzzReport:
    """Give the client ``count`` answers, ``over_sockets`` of them over sockets of this machine.

    ``bundle`` is the directory of a client part. Each worker is a process with a part of them.
    """
    report = ServerFuzzReport(seed=seed, answers=count, over_sockets=over_sockets)
    began = time.monotonic()
    parts = [(bundle, range(part, count, workers), count - over_sockets, seed) for part in range(workers)]
    if workers == 1:
        found = [_part(*parts[0])]
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_part, *zip(*parts, strict=True)))
    for one in found:
        report.add(one)
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _part(path: Path, numbers: range, in_memory: int, seed: int) -> ServerFuzzReport:
    """Make the calls of these numbers; those from ``in_memory`` on go over sockets."""
    report = ServerFuzzReport(seed=seed)
    fuzzer = _Fuzzer(load_client(path), seed, report)
    memory = _MemoryTransport()

    def set_memory(answers: Iterator[Iterator[bytes]], chooser: random.Random) -> None:
        memory.answers, memory.chooser = answers, chooser

    with _without_fsync(), _SocketServer().running() as server, tempfile.TemporaryDirectory() as cache:

        def set_server(answers: Iterator[Iterator[bytes]], chooser: random.Random) -> None:
            server.answers, server.chooser = answers, chooser

        options = {"cache_dir": Path(cache)}
        first = [number for number in numbers if number < in_memory]
        peers = _Peers("http://127.0.0.1:9", options, (memory, _AsyncMemoryTransport(memory)), set_memory)
        fuzzer.run(first[:_WARM_UP], peers)
        report.memory_before_mb = _peak_mb()
        fuzzer.run(first[_WARM_UP:], peers)
        fuzzer.run(numbers[len(first) :], _Peers(server.url, options, (None, None), set_server))
    fuzzer.close()
    report.memory_peak_mb = _peak_mb()
    grown = report.memory_peak_mb - report.memory_before_mb
    if grown > _MEMORY_MB:
        report.findings.append(f"memory: grew by {grown} MiB")
    return report


@contextmanager
def _without_fsync() -> Iterator[None]:
    """Skip the waits for the disk, which the verification of a bundle makes thousands of."""
    original = os.fsync
    os.fsync = lambda _: None  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = original
