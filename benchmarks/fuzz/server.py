"""Malicious servers against the client: python -m benchmarks.fuzz --server [--quick] [--json]

Most answers reach the client through httpcore's HTTP parser in memory, the rest over sockets of
this machine, where they may also drip, hang or be reset; half of those are sealed by a server that
holds the gateway's key. Each belongs to a completion, a stream, a turn of a conversation, a chat
under the bundle's template, a list of models or the download of a bundle, synchronous or
asynchronous; a third of the completions and streams ask for log probabilities.

A finding is whatever leaves a call besides a valid result and an error of the family, a call that
runs past its limits, and memory that grows by more than 256 MiB.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.fuzz.answers import Answers
from benchmarks.fuzz.connections import PATIENCE_S, Answer, AsyncMemoryTransport, MemoryTransport, SocketServer
from benchmarks.fuzz.sealed import SealedAnswers
from client_lib import AsyncClient, Client, Completion, DELClientError, Message, RetryPolicy, Timeout
from del_core.bundle import ClientBundle, load_client
from del_core.ohttp import GatewayKey

__all__ = ["ServerFuzzReport", "fuzz_client"]

_OPERATIONS = ("complete", "complete", "stream", "stream", "turn", "chat", "models", "bundle")
_SEALED = ("sealed complete", "sealed stream", "sealed models")
_ANSWERED_AS = {"turn": "complete", "chat": "complete"} | {name: name.partition(" ")[2] for name in _SEALED}
_TOTAL_S = 3.0
_SLACK_S = PATIENCE_S - _TOTAL_S  # for other programs on the machine
_CPU_S = 3.0
_MEMORY_MB = 256
_MAX_TOKENS = 4
_WARM_UP = 200  # calls that load what is loaded late
_PROMPT = "my doctor told me that the test was positive, 12345 times. "
_CHAT = [Message("system", "Be brief."), Message("user", _PROMPT)]
_TOP = 2  # alternatives where log probabilities are asked for


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


# --- calls ------------------------------------------------------------------------------------


@dataclass
class _Peers:
    """Clients of both kinds of one server; those of a bundle are made for each call.

    With a ``key`` there are two more, which seal their requests for it.
    """

    url: str
    options: dict[str, Any]
    transports: tuple[httpx.BaseTransport | None, httpx.AsyncBaseTransport | None]
    set_answers: Callable[[Iterator[Answer], random.Random], None]
    key: GatewayKey | None = None


def _limits() -> dict[str, Any]:
    return {
        "timeout": Timeout(connect=1.0, read=1.0, total=_TOTAL_S),
        "retry": RetryPolicy(max_retries=1, first_pause=0.001, longest_wait=0.01),
        "max_resumes": 1,
        "variant": "open",
    }


def _run_sync(client: Client, operation: str, logprobs: int | None) -> object:
    match operation:
        case "complete" | "sealed complete":
            return client.complete(_PROMPT, max_tokens=_MAX_TOKENS, logprobs=logprobs)
        case "stream" | "sealed stream":
            with client.stream(_PROMPT, max_tokens=_MAX_TOKENS, logprobs=logprobs) as stream:
                for _ in stream:
                    pass
                return stream.completion
        case "turn":
            return client.conversation().complete(_PROMPT, max_tokens=_MAX_TOKENS)
        case "chat":
            return client.complete(_CHAT, max_tokens=_MAX_TOKENS)
        case "models" | "sealed models":
            return client.models()
        case _:
            bundle = client.bundle()
            variant = next(iter(client.variants()))
            client.room(variant=variant)
            return client.encode(_PROMPT * 50 if bundle.manifest.chat is None else _CHAT, variant=variant)


async def _run_async(client: AsyncClient, operation: str, logprobs: int | None) -> object:
    match operation:
        case "complete" | "sealed complete":
            return await client.complete(_PROMPT, max_tokens=_MAX_TOKENS, logprobs=logprobs)
        case "stream" | "sealed stream":
            async with client.stream(_PROMPT, max_tokens=_MAX_TOKENS, logprobs=logprobs) as stream:
                async for _ in stream:
                    pass
                return stream.completion
        case "turn":
            return await client.conversation().complete(_PROMPT, max_tokens=_MAX_TOKENS)
        case "chat":
            return await client.complete(_CHAT, max_tokens=_MAX_TOKENS)
        case "models" | "sealed models":
            return await client.models()
        case _:
            bundle = await client.bundle()
            variant = next(iter(await client.variants()))
            await client.room(variant=variant)
            return await client.encode(_PROMPT * 50 if bundle.manifest.chat is None else _CHAT, variant=variant)


def _problem(result: object) -> str | None:
    """Return what is wrong with a result that a client has accepted."""
    if not isinstance(result, Completion):
        return None
    if len(result.token_ids) > _MAX_TOKENS or len(result.text) > 512 * _MAX_TOKENS:
        return "a completion that is too long"
    if result.logprobs is not None and any(
        not -1e5 < one.logprob <= 0 or len(one.top) > _TOP for one in result.logprobs
    ):
        return "a completion with log probabilities that nobody asked for"
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
        self._logprobs: int | None = None

    def run(self, numbers: Sequence[int], peers: _Peers) -> None:
        """Make one call for each number, which determines operation, client and answers."""
        shared = {**peers.options, "bundle": self._bundle.path, **_limits()}
        sealing: dict[str, Any] = {} if peers.key is None else {"gateway_key": peers.key.config.to_bytes()}
        pairs = []
        with ExitStack() as stack:
            for options in (shared, shared | sealing)[: 1 + bool(sealing)]:
                client = stack.enter_context(Client(peers.url, transport=peers.transports[0], **options))
                other = AsyncClient(peers.url, transport=peers.transports[1], **options)
                stack.callback(self._close, other)
                pairs.append((client, other))
            for number in numbers:
                self._one(number, peers, pairs)

    def _close(self, client: AsyncClient) -> None:
        self._runner.run(client.close())

    def _one(self, number: int, peers: _Peers, pairs: Sequence[tuple[Client, AsyncClient]]) -> None:
        chooser = random.Random(self._seed * 1_000_000_007 + number)
        is_sealed = len(pairs) > 1 and chooser.random() < 0.5
        operation = chooser.choice(_SEALED if is_sealed else _OPERATIONS)
        client, other = pairs[is_sealed]
        is_async = chooser.random() < 0.3
        self._logprobs = _TOP if chooser.random() < 0.3 else None
        peers.set_answers(self._made(number, operation, chooser, peers.key if is_sealed else None), chooser)
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

    def _made(self, number: int, operation: str, chooser: random.Random, key: GatewayKey | None) -> Iterator[Answer]:
        """Yield answers; a defect of theirs would pass for a broken connection."""
        made = _ANSWERED_AS.get(operation, operation)

        def answer(request: bytes) -> Iterator[bytes]:
            kind = made if made != "bundle" or is_first else chooser.choice(("bundle", "models"))
            try:
                if key is None:
                    return self._answers.answer(kind, chooser)
                return SealedAnswers(self._answers, key).answer(kind, chooser, request)
            except Exception as error:
                self._found(number, operation, f"the fuzzer failed: {error!r}")
                return iter(())

        is_first = True
        while True:
            yield answer
            is_first = False

    def _call(
        self, operation: str, is_async: bool, peers: _Peers, client: Client, other: AsyncClient, cache: str | None
    ) -> object:
        if cache is None:
            if is_async:
                return self._runner.run(_run_async(other, operation, self._logprobs))
            return _run_sync(client, operation, self._logprobs)
        options = {**_limits(), "cache_dir": Path(cache)}
        if not is_async:
            with Client(peers.url, transport=peers.transports[0], **options) as fresh:
                return _run_sync(fresh, operation, None)

        async def run() -> object:
            async with AsyncClient(peers.url, transport=peers.transports[1], **options) as fresh:
                return await _run_async(fresh, operation, None)

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
    memory = MemoryTransport()

    def set_memory(answers: Iterator[Answer], chooser: random.Random) -> None:
        memory.answers, memory.chooser = answers, chooser

    with _without_fsync(), SocketServer().running() as server, tempfile.TemporaryDirectory() as cache:

        def set_server(answers: Iterator[Answer], chooser: random.Random) -> None:
            server.answers, server.chooser = answers, chooser

        options = {"cache_dir": Path(cache)}
        first = [number for number in numbers if number < in_memory]
        peers = _Peers("http://127.0.0.1:9", options, (memory, AsyncMemoryTransport(memory)), set_memory)
        fuzzer.run(first[:_WARM_UP], peers)
        report.memory_before_mb = _peak_mb()
        fuzzer.run(first[_WARM_UP:], peers)
        key = GatewayKey.generate()
        fuzzer.run(numbers[len(first) :], _Peers(server.url, options, (None, None), set_server, key))
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
