"""Kill parts of a running service under load: python -m benchmarks.faults [--json]

A local cluster of two Ray nodes serves the demo, or SmolLM2 (``--model smollm2``), with one replica
each. Clients with the library's default settings repeat the same completions (greedy and seeded,
whole and streamed; the noise of each prompt is drawn once). Every answer is compared with the
answer before the first kill.
Meanwhile SIGKILL hits, one at a time and at random times: an engine process, a replica, HAProxy,
Serve's controller, a whole node. The next kill follows when the service has recovered: two at once
would leave no replica, and a client's retries would end with a typed error.

    succeeded   text and token ids equal those without faults        wrong   any other text
    failed      a typed error of the client library, by its code     hung    no end within the limit
    resumed     requests that were resent with the tokens received so far
    leaked      processes that should have ended; engines without a replica
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

import click
import httpx
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.support.served import smollm2
from client_lib import AsyncClient, DELClientError, EncodedPrompt
from cluster.local import LocalServer, start_local
from deployments.settings import parse_settings

__all__ = [
    "KINDS",
    "Answer",
    "CountingTransport",
    "Item",
    "Outcomes",
    "Report",
    "ask",
    "ask_and_compare",
    "make_items",
    "run",
]

PROMPTS = (
    "Dear sister, the doctor says that my fever will not go down before the end of the week",
    "The captain asked me in secret whether the ship could be sold before the winter",
    "Nobody but you may know that I have left the house and gone to the city alone",
)
VARIANTS = ("strict", "open")
HUNG_S = 120.0
WHOLE_WITHIN_S = 120.0
STEADY_S = 3.0
OUTPUT_TOKENS = 96

#: What is killed: kind -> how the processes' command lines begin. A node is found otherwise.
KINDS = {
    "engine": "VLLM::EngineCore",
    "replica": "ray::ServeReplica",
    "haproxy": "",
    "controller": "ray::ServeController",
    "node": "",
}


@dataclass(frozen=True)
class Item:
    """A completion that clients request repeatedly."""

    prompt: EncodedPrompt
    seed: int | None
    stream: bool


Answer = tuple[str, tuple[int, ...]]
"""Text and token ids of a completion."""


@dataclass
class Outcomes:
    """Counts of requests; the module docstring explains the fields."""

    requests: int = 0
    succeeded: int = 0
    wrong: int = 0
    hung: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0


@dataclass
class Report(Outcomes):
    """Result of a run; the module docstring explains the fields."""

    resumed: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    whole_again_s: dict[str, list[float]] = field(default_factory=dict)
    leaked: int = 0
    memory_mb: list[int] = field(default_factory=list)
    seconds: float = 0.0


class CountingTransport(httpx.AsyncBaseTransport):
    """Counter of frames that resume a completion."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self.resumed = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Handle a request; see httpx."""
        if request.method == "POST":
            body = await request.aread()
            (length,) = struct.unpack_from("<I", body, 5)
            self.resumed += bool(json.loads(body[9 : 9 + length]).get("resume"))
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the transport; see httpx."""
        await self._inner.aclose()


async def ask(client: AsyncClient, item: Item) -> Answer:
    """Return text and token ids of one completion, whole or streamed."""
    options = {"max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "seed": item.seed}
    options["temperature"] = 0.0 if item.seed is None else 1.0
    if not item.stream:
        completion = await client.complete(item.prompt, variant=item.prompt.variant, **options)
        return completion.text, completion.token_ids
    text, token_ids = "", []
    async with client.stream(item.prompt, variant=item.prompt.variant, **options) as stream:
        async for chunk in stream:
            text += chunk.text
            token_ids += chunk.token_ids
    return text, tuple(token_ids)


async def make_items(client: AsyncClient) -> list[Item]:
    """Return every prompt under every variant, greedy and seeded, whole and streamed."""
    from client_lib import private

    seeds = count(1)
    items = []
    for text in PROMPTS:
        for variant in VARIANTS:
            prompt = await client.encode([private(text)], variant=variant)
            items += [Item(prompt, seed, stream) for seed in (None, next(seeds)) for stream in (True, False)]
    return items


# --- killing ------------------------------------------------------------------------------


def command_line(process: psutil.Process) -> str:
    """Return the command line or the title of a process; empty after its end."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def victims(server: LocalServer, kind: str) -> list[psutil.Process]:
    """Return the processes among which a fault of this kind kills one."""
    if kind == "node":
        return server.worker_nodes()
    found = server.processes()
    if kind == "haproxy":
        return [process for process in found if "/bin/haproxy " in command_line(process) + " "]
    return [process for process in found if command_line(process).startswith(KINDS[kind])]


def kill(server: LocalServer, kind: str, chooser: random.Random) -> set[int]:
    """Kill one process, or all of a node; return their ids, none if no process exists."""
    found = victims(server, kind)
    if not found:
        return set()
    victim = chooser.choice(sorted(found, key=lambda process: process.pid))
    # The node's own processes first, so that they cannot react to the loss of the others.
    doomed = [*victim.children(recursive=True), victim] if kind == "node" else [victim]
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return {process.pid for process in doomed}


def complete_without(server: LocalServer, options: _Options, not_these: set[int]) -> bool:
    """Return whether all required processes run, and none of ``not_these``."""
    replicas = options.replicas
    wanted = {"engine": options.engines, "replica": replicas, "haproxy": 1, "controller": 1, "node": 1}
    for kind, number in wanted.items():
        found = {process.pid for process in victims(server, kind)}
        if len(found) < number or found & not_these:
            return False
    return True


async def whole(server: LocalServer, options: _Options, not_these: set[int]) -> float:
    """Wait until the service has recovered, without ``not_these``; return the seconds it took."""
    began = time.monotonic()
    steady_since = None
    async with httpx.AsyncClient(base_url=server.url, timeout=5.0) as client:
        while time.monotonic() - began < WHOLE_WITHIN_S:
            if not await asyncio.to_thread(complete_without, server, options, not_these):
                steady_since = None
            else:
                try:
                    answers = [await client.get("/readyz") for _ in range(2 * options.replicas)]
                except httpx.HTTPError:
                    answers = []
                if not answers or any(answer.status_code != 200 for answer in answers):
                    steady_since = None
                elif steady_since is None:
                    steady_since = time.monotonic()
                elif time.monotonic() - steady_since > STEADY_S:
                    return steady_since - began
            await asyncio.sleep(0.25)
    alive = Counter(command_line(process)[:30] for process in server.processes())
    raise RuntimeError(f"the service was not whole again within {WHOLE_WITHIN_S:.0f} s; alive: {dict(alive)}")


async def kill_at_random(
    server: LocalServer, report: Report, kinds: Iterator[str], chooser: random.Random, options: _Options
) -> None:
    """Cause one fault after another, until cancelled or ``kinds`` ends."""
    for kind in kinds:
        await asyncio.sleep(chooser.uniform(0.2, 1.0) * options.pause_s)
        killed = await asyncio.to_thread(kill, server, kind, chooser)
        if not killed:
            continue
        report.kills[kind] = report.kills.get(kind, 0) + 1
        click.echo(f"killed: {kind}; so far {report.requests} requests, {report.succeeded} right", err=True)
        report.whole_again_s.setdefault(kind, []).append(round(await whole(server, options, killed), 1))


# --- the run ------------------------------------------------------------------------------


async def ask_and_compare(client: AsyncClient, item: Item, wanted: Answer, outcomes: Outcomes) -> bool:
    """Make one request and count its outcome; return whether it was answered."""
    outcomes.requests += 1
    began = time.monotonic()
    answered = False
    try:
        async with asyncio.timeout(HUNG_S):
            answer = await ask(client, item)
    except TimeoutError:
        outcomes.hung += 1
    except DELClientError as error:
        code = " ".join(str(part) for part in (type(error).__name__, error.status, error.code) if part)
        outcomes.failed[code] = outcomes.failed.get(code, 0) + 1
    except asyncio.CancelledError:
        outcomes.requests -= 1  # cut off by the end of the run
        raise
    else:
        answered = True
        outcomes.succeeded += answer == wanted
        outcomes.wrong += answer != wanted
    outcomes.slowest_s = max(outcomes.slowest_s, round(time.monotonic() - began, 2))
    return answered


async def load(client: AsyncClient, expected: Sequence[tuple[Item, Answer]], report: Report, seed: int) -> None:
    """Run one client until cancelled."""
    chooser = random.Random(seed)
    while True:
        await ask_and_compare(client, *chooser.choice(expected), report)


def memory_mb(server: LocalServer) -> int:
    """Return memory that the processes of the service do not share, in MiB."""
    total = 0
    for process in server.processes():
        try:
            total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total // 2**20


async def _run(server: LocalServer, report: Report, kinds: Iterator[str], seconds: float, options: _Options) -> None:
    transport = CountingTransport()
    async with AsyncClient(server.url, transport=transport) as client:
        items = await make_items(client)
        expected = [(item, await ask(client, item)) for item in items]
        report.memory_mb.append(await asyncio.to_thread(memory_mb, server))
        chooser = random.Random(options.seed)
        clients = [asyncio.create_task(load(client, expected, report, n)) for n in range(options.concurrency)]
        killer = asyncio.create_task(kill_at_random(server, report, kinds, chooser, options))
        began = time.monotonic()
        try:
            done, _ = await asyncio.wait((killer, *clients), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a defect here is no result of the run
        finally:
            report.seconds = round(time.monotonic() - began, 1)
            for task in (killer, *clients):
                task.cancel()
            await asyncio.gather(killer, *clients, return_exceptions=True)
        await whole(server, options, set())
        report.memory_mb.append(await asyncio.to_thread(memory_mb, server))
        report.resumed = transport.resumed


@dataclass(frozen=True)
class _Options:
    seed: int
    concurrency: int
    replicas: int
    engines: int
    pause_s: float


def run(
    *,
    seconds: float = 600.0,
    kinds: Iterator[str] | None = None,
    concurrency: int = 6,
    replicas: int = 2,
    pause_s: float = 20.0,
    seed: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Run for ``seconds``, or until ``kinds`` ends.

    Args:
        kinds: kinds of faults; by default all kinds in random order without end.
        settings: settings of the server, by default those of the demo; their scaling is replaced.
    """
    report = Report()
    scaling = {"scaling": {"min_replicas": replicas, "max_replicas": replicas}}
    with start_local(parse_settings({**(settings or {}), **scaling}), worker_nodes=1) as server:
        # The mock engine has no process of its own.
        engines = len(victims(server, "engine"))
        asyncio.run(
            _run(
                server,
                report,
                kinds or _shuffled(seed, tuple(KINDS)),
                seconds,
                _Options(seed, concurrency, replicas, engines, pause_s),
            )
        )
        report.leaked = abs(len(victims(server, "engine")) - engines)
    report.leaked += len(server.processes())
    return report


def _shuffled(seed: int, kinds: tuple[str, ...]) -> Iterator[str]:
    chooser = random.Random(seed)
    while True:
        yield from chooser.sample(kinds, len(kinds))


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="How long faults go on.")
@click.option("--quick", is_flag=True, help="One fault of each kind instead.")
@click.option("--kind", "chosen", type=click.Choice(list(KINDS)), multiple=True, help="Only these kinds.")
@click.option("--concurrency", default=6, show_default=True, help="Clients that ask at the same time.")
@click.option("--seed", default=1, show_default=True, help="Chooses victims and moments.")
@click.option("--model", type=click.Choice(["demo", "smollm2"]), default="demo", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def main(
    seconds: float, quick: bool, chosen: tuple[str, ...], concurrency: int, seed: int, model: str, as_json: bool
) -> None:
    """Kill engine, replica, HAProxy, controller and node under load; compare every answer."""
    settings = smollm2() if model == "smollm2" else None
    kinds = iter(chosen or KINDS) if quick else _shuffled(seed, chosen or tuple(KINDS))
    seconds, pause_s = (240.0, 3.0) if quick else (seconds, 20.0)
    report = run(seconds=seconds, kinds=kinds, concurrency=concurrency, pause_s=pause_s, seed=seed, settings=settings)
    if as_json:
        click.echo(json.dumps(asdict(report)))
        return
    table = Table(title="Faults under load")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, value in asdict(report).items():
        table.add_row(name, json.dumps(value))
    Console().print(table)


if __name__ == "__main__":
    main()
