"""What it is worth that a conversation stays on its replica: python -m benchmarks.affinity [--json]

Several replicas of SmolLM2's bundle stand behind HAProxy, with the model itself or with the mock
engine at the pace of a GPU and a prefix cache of its own. Clients hold conversations with
``client_lib.AsyncClient.conversation``: every turn sends the whole conversation again, with the
counts of the earlier turns as they were drawn, so that a prompt begins with the one before it.

    affinity    requests as the client sends them: their session id selects the replica
    none        the same without the session id, so that any replica may get a turn

Conversations of both kinds alternate on one server. For each kind and turn: the time to the first
token, and the share of the rows of prompts, soft prompt included, that the engine's cache had
(``del_cached_rows`` of the server's metrics). The soft prompt and the public beginning of the
template are the same in all conversations, so every replica has them after its first request.

Everything shares the cores of one machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import httpx

from benchmarks.support.served import smollm2
from client_lib import AsyncClient, Message
from cluster.local import LocalServer, start_local
from del_core.bundle import load_bundle
from deployments.settings import Settings, parse_settings

__all__ = ["KINDS", "Plan", "counters", "measure", "rows_of"]

KINDS, ENGINES = ("affinity", "none"), ("smollm2", "mock")
SESSION = "x-session-id"
_VARIANT = "balanced"
_OUTPUT_TOKENS = 8
_METRICS_WITHIN_S = 30.0
_TIMEOUT_S = 120.0
_TEXTS = (
    "I was told to take the tablets with food, but they make me feel sick in the morning all the same.",
    "My sister had the same illness two years ago, and her doctor stopped the treatment after a week.",
    "The appointment is on Tuesday at the clinic by the station, and I have nobody who could drive me.",
    "Since yesterday I have had a fever of thirty-nine degrees and a pain behind my left eye at night.",
    "I have not told my employer yet, because the last time somebody was ill for a month he lost his job.",
    "What should I ask the doctor first, and what should I take with me to the clinic on Tuesday morning?",
)


@dataclass(frozen=True)
class Plan:
    """Conversations of each kind, turns of each, and clients at once."""

    conversations: int
    turns: int
    clients: int


@dataclass(frozen=True)
class Turn:
    """A turn that was answered: its kind, its number from 0, and seconds to the first token."""

    kind: str
    number: int
    first_s: float


class _WithoutSession(httpx.AsyncHTTPTransport):
    """Takes the session id out of every request."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers.pop(SESSION, None)
        return await super().handle_async_request(request)


def settings_of(engine_name: str, replicas: int) -> Settings:
    """Return the settings of some replicas with ``smollm2`` (one thread each) or ``mock``."""
    engine: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 2048, "max_num_seqs": 8, "threads": 1}
    if engine_name == "mock":
        engine = {"kind": "mock", "cache_rows": 1_000_000}
    scaling = {"min_replicas": replicas, "max_replicas": replicas, "num_cpus": 0.01}
    return parse_settings({**smollm2(), "engine": engine, "scaling": scaling})


def counters(text: str) -> Counter[str]:
    """Add up the project's counters of a page of metrics, by name, over replicas and variants."""
    found: Counter[str] = Counter()
    for line in text.splitlines():
        name, _, rest = line.partition("{")
        if name.startswith("ray_del_") and name.endswith("_total"):
            found[name.removeprefix("ray_").removesuffix("_total")] += round(float(rest.rsplit(" ", 1)[1]))
    return found


def _counted(server: LocalServer, requests: int) -> Counter[str]:
    """Return the counters as soon as they hold ``requests``. Raises TimeoutError."""
    deadline = time.monotonic() + _METRICS_WITHIN_S
    while True:
        with urllib.request.urlopen(f"http://{server.metrics[0]}/metrics") as answer:
            found = counters(answer.read().decode())
        if found["del_requests"] >= requests:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"the metrics count {found['del_requests']} requests of {requests}")
        time.sleep(0.25)


async def _converse(client: AsyncClient, kind: str, turns: int) -> list[Turn]:
    conversation = client.conversation(variant=_VARIANT)
    messages: list[Message] = []
    found: list[Turn] = []
    for number in range(turns):
        messages.append(Message("user", _TEXTS[number % len(_TEXTS)]))
        began, first, text = time.perf_counter(), None, ""
        async with conversation.stream(messages, max_tokens=_OUTPUT_TOKENS, temperature=0.0, ignore_eos=True) as stream:
            async for chunk in stream:
                first = first or time.perf_counter()
                text += chunk.text
        assert first is not None
        found.append(Turn(kind, number, first - began))
        messages.append(Message("assistant", text))
    return found


async def _hold(url: str, kind: str, plan: Plan, conversations: int) -> list[Turn]:
    """Hold conversations one after the other, ``plan.clients`` at a time."""
    transport = _WithoutSession() if kind == "none" else None
    waiting: Iterator[int] = iter(range(conversations))
    found: list[Turn] = []
    async with AsyncClient(url, transport=transport, timeout=_TIMEOUT_S) as client:
        await client.bundle()  # not a part of the first turn

        async def work() -> None:
            for _ in waiting:
                found.extend(await _converse(client, kind, plan.turns))

        async with asyncio.TaskGroup() as group:
            for _ in range(plan.clients):
                group.create_task(work())
    return found


def measure(server: LocalServer, plan: Plan) -> tuple[list[Turn], dict[str, Counter[str]]]:
    """Return the turns of both kinds, and what the server counted for each kind."""
    turns: list[Turn] = []
    counted: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    # Every replica computes the beginning of all prompts once before anything counts.
    warm = asyncio.run(_hold(server.url, "none", Plan(1, 1, 2), 8))
    requests = len(warm)
    before = _counted(server, requests)
    for number in range(0, plan.conversations, plan.clients):
        for kind in KINDS if number // plan.clients % 2 == 0 else KINDS[::-1]:
            answered = asyncio.run(_hold(server.url, kind, plan, min(plan.clients, plan.conversations - number)))
            turns += answered
            requests += len(answered)
            after = _counted(server, requests)
            counted[kind] += after - before
            before = after
    return turns, counted


def rows_of(turns: list[Turn], counted: dict[str, Counter[str]], soft_rows: int) -> list[dict[str, Any]]:
    """Return a row for each kind: cache hits, and the time to the first token by turn in ms."""
    rows = []
    for kind in KINDS:
        mine, counts = [turn for turn in turns if turn.kind == kind], counted[kind]
        last = 1 + max(turn.number for turn in mine)
        by_turn = [[1e3 * turn.first_s for turn in mine if turn.number == number] for number in range(last)]
        rows.append(
            {
                "kind": kind,
                "requests": len(mine),
                "cached_rows_share": round(
                    counts["del_cached_rows"] / (counts["del_prompt_tokens"] + soft_rows * len(mine)), 4
                ),
                "prompt_rows": counts["del_prompt_tokens"] + soft_rows * len(mine),
                "computed_rows": counts["del_prompt_tokens"] + soft_rows * len(mine) - counts["del_cached_rows"],
                "ttft_p50_ms": round(statistics.median(1e3 * turn.first_s for turn in mine), 1),
                "ttft_ms_by_turn": [round(statistics.median(one), 1) for one in by_turn],
                "ttft_later_p50_ms": round(statistics.median(x for one in by_turn[1:] or by_turn for x in one), 1),
            }
        )
    return rows


def _plan_of(engine: str, quick: bool) -> tuple[int, Plan]:
    """Return the replicas and the plan of an engine."""
    if engine == "mock":
        return (4, Plan(8, 4, 4)) if quick else (4, Plan(32, 8, 4))
    return (2, Plan(2, 3, 2)) if quick else (2, Plan(12, 6, 2))


@click.command()
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True, help="One or both.  [default: both]")
@click.option("--replicas", type=click.IntRange(1, 16), help="Replicas.  [default: 2 with the model, 4 with mock]")
@click.option("--conversations", type=click.IntRange(1), help="Conversations of each kind.")
@click.option("--turns", type=click.IntRange(1, 32), help="Turns of a conversation.")
@click.option("--quick", is_flag=True, help="Few and short conversations: under five minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
def main(
    engines: tuple[str, ...],
    replicas: int | None,
    conversations: int | None,
    turns: int | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Compare conversations that stay on a replica with conversations that do not."""
    rows = []
    for engine in engines or ENGINES:
        number, plan = _plan_of(engine, quick)
        number = replicas or number
        plan = replace(plan, conversations=conversations or plan.conversations, turns=turns or plan.turns)
        settings = settings_of(engine, number)
        soft_rows = load_bundle(settings.bundle_path).variants[_VARIANT].soft_prompt_length
        with start_local(settings, proxy="haproxy") as server:
            found = measure(server, plan)
        about = {"engine": engine, "replicas": number, **asdict(plan), "load_average": round(os.getloadavg()[0], 1)}
        for row in rows_of(*found, soft_rows):
            rows.append(about | row)
            click.echo(json.dumps(rows[-1]), err=True)
    if as_json:
        click.echo(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
