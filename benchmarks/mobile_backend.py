"""What the mobile backend costs: python -m benchmarks.mobile_backend [--messages N] [--json]

Chats of several users at once, each in a closed loop: a message, its whole answer, the next one.

    client     the same chats through ``client_lib`` in the load generator: conversations, no budget
    backend    through ``python -m examples.mobile_backend``: HTTP, Redis, budget, chat, order

Server, backend, Redis and load generator are processes of this machine and share its cores. A mock
engine generates at once, so that what is measured is the software around a model; Redis writes
every change to the disk, as the ledger demands. Both paths take turns, ``rounds`` times; figures
are medians of the rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import secrets
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import httpx

from client_lib import AsyncClient, Message, public
from client_lib.policy import PrivacyPolicy
from client_lib.prompts.chat import ChatTemplate
from client_lib.proxy.server import bind, configure, url_of

__all__ = ["measure"]

_USERS = (1, 8, 32)
_TEXT = "The doctor says that my fever will not go down."
_ANSWER_TOKENS = 16
_VARIANT = "balanced"
_STARTED_WITHIN_S = 120.0
_ANSWERED_WITHIN_S = 120.0
_TEMPLATE = ChatTemplate.simple({"user": "User:", "assistant": "Assistant:"}, answer="Assistant:")

Times = tuple[float, float]
"""Seconds to the first text and to the end of an answer."""
Chat = Callable[[int], Awaitable[list[Times]]]
"""Runs one user's chat of so many messages."""


# --- the processes --------------------------------------------------------------------------------


def _serve_model(said: Connection) -> None:
    """Serve the demo bundle with a mock engine."""
    import uvicorn

    from deployments.api.context import APIOptions
    from deployments.api.routes import create_app
    from deployments.replica import start_service
    from deployments.settings import parse_settings

    settings = parse_settings({"engine": {"kind": "mock", "step_ms": 0.01, "quantum_ms": 0.5, "prompt_token_ms": 0}})

    async def run() -> None:
        app = create_app(await start_service(settings), APIOptions())
        bound = bind("127.0.0.1", 0)
        said.send(url_of(bound))
        await uvicorn.Server(configure(app)).serve(sockets=[bound])

    asyncio.run(run())


def _serve_backend(said: Connection, server: str, redis: str) -> None:
    """Run the backend; every token is a user's."""
    import logging

    from examples.mobile_backend.__main__ import Server
    from examples.mobile_backend.app import create_app
    from examples.mobile_backend.observe import JSONFormatter
    from examples.mobile_backend.settings import Plan, Settings
    from examples.mobile_backend.users import User

    plan = Plan(
        variant=_VARIANT,
        max_epsilon_per_token=1000.0,
        tokens=10_000,
        answer_tokens=_ANSWER_TOKENS,
        messages_per_minute=6000,
        burst=1000,
    )
    settings = Settings(server, redis, secrets.token_bytes(32), {"free": plan})
    with open("/dev/null", "w", encoding="utf-8") as nowhere:  # lines are made as in production
        unread, failures = logging.StreamHandler(nowhere), logging.StreamHandler()
        failures.setLevel(logging.WARNING)
        for handler in (unread, failures):
            handler.setFormatter(JSONFormatter())
        logging.basicConfig(level=logging.INFO, handlers=[unread, failures], force=True)
        bound = bind("127.0.0.1", 0)
        said.send(url_of(bound))
        app = create_app(settings, lambda token: User(token, "free"))
        Server(app, "127.0.0.1", 0, drain=settings.drain).run(sockets=[bound])


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: str) -> Iterator[str]:
    """Run a server in a process of its own; yields its URL."""
    context = multiprocessing.get_context("spawn")
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(said, *arguments), daemon=True)
    process.start()
    said.close()
    try:
        if not heard.poll(_STARTED_WITHIN_S):
            raise RuntimeError(f"{target.__name__}: it must start within {_STARTED_WITHIN_S:g} s")
        url: str = heard.recv()
        _wait_until_ready(url)
        yield url
    finally:
        process.terminate()
        process.join(60)
        process.kill()


def _wait_until_ready(url: str) -> None:
    end = time.monotonic() + _STARTED_WITHIN_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", trust_env=False, timeout=10).status_code == 200:
                return
        if time.monotonic() > end:
            raise RuntimeError(f"{url}/readyz: it must answer 200 within {_STARTED_WITHIN_S:g} s")
        time.sleep(0.05)


# --- the chats ------------------------------------------------------------------------------------


def _through_client(client: AsyncClient) -> Chat:
    async def chat(messages: int) -> list[Times]:
        conversation = client.conversation(variant=_VARIANT, template=_TEMPLATE)
        history: list[Message] = []
        times = []
        for number in range(messages):
            history.append(Message("user", f" {_TEXT} {number}"))
            began = time.perf_counter()
            async with conversation.stream(history, max_tokens=_ANSWER_TOKENS) as stream:
                await anext(stream)
                first = time.perf_counter() - began
                async for _ in stream:
                    pass
            times.append((first, time.perf_counter() - began))
            assert stream.completion is not None
            history.append(Message("assistant", public(f" {stream.completion.text.strip()}")))
        return times

    return chat


def _through_backend(http: httpx.AsyncClient) -> Chat:
    async def chat(messages: int) -> list[Times]:
        headers = {"authorization": f"Bearer {secrets.token_hex(8)}"}
        times = []
        for number in range(messages):
            content = {"id": str(number), "text": f"{_TEXT} {number}"}
            began = time.perf_counter()
            async with http.stream("POST", "/chats/1/messages", json=content, headers=headers) as answer:
                if answer.status_code != 200:
                    raise RuntimeError(f"the backend answered {answer.status_code}: {(await answer.aread())[:400]!r}")
                first, last = 0.0, ""
                async for line in answer.aiter_lines():
                    first = first or time.perf_counter() - began
                    last = line or last
            times.append((first, time.perf_counter() - began))
            if "finish_reason" not in last:
                raise RuntimeError(f"an answer ended with {last[:400]!r}")
        return times

    return chat


async def _round(chat: Chat, users: int, messages: int) -> dict[str, float]:
    began = time.perf_counter()
    done = await asyncio.gather(*(chat(messages) for _ in range(users)))
    seconds = time.perf_counter() - began
    firsts, wholes = zip(*(times for one in done for times in one), strict=True)
    return {
        "answers_per_s": users * messages / seconds,
        "first_text_p50_ms": 1000 * statistics.median(firsts),
        "answer_p50_ms": 1000 * statistics.median(wholes),
        "answer_p95_ms": 1000 * sorted(wholes)[min(len(wholes) - 1, int(0.95 * len(wholes)))],
    }


async def _measure(model: str, backend: str, cache: Path, rounds: int, messages: int) -> list[dict[str, Any]]:
    policy = PrivacyPolicy(max_epsilon_per_token=1e6)
    limits = httpx.Limits(max_connections=max(_USERS), max_keepalive_connections=max(_USERS))
    async with (
        AsyncClient(model, cache_dir=cache, policy=policy) as client,
        httpx.AsyncClient(base_url=backend, limits=limits, timeout=_ANSWERED_WITHIN_S, trust_env=False) as http,
    ):
        paths = {"client": _through_client(client), "backend": _through_backend(http)}
        for chat in paths.values():  # what only the first request pays
            await chat(2)
        rows = []
        for users in _USERS:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
            for _ in range(rounds):
                for name, chat in paths.items():
                    found[name].append(await _round(chat, users, messages))
            for name, measured in found.items():
                figures = {key: round(statistics.median(one[key] for one in measured), 1) for key in measured[0]}
                rows.append({"path": name, "users": users, **figures})
        return rows


def measure(rounds: int, messages: int) -> dict[str, Any]:
    """Return the figures of each path and number of users."""
    from tests.support.redis_server import RedisServer

    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer.running() as redis,
        _process(_serve_model) as model,
        _process(_serve_backend, model, redis.url) as backend,
    ):
        rows = asyncio.run(_measure(model, backend, Path(directory), rounds, messages))
    return {"rounds": rounds, "messages": messages, "answer_tokens": _ANSWER_TOKENS, "paths": rows}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds of each path and number of users.")
@click.option("--messages", default=8, show_default=True, help="Messages of each chat.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")
def main(rounds: int, messages: int, as_json: bool) -> None:
    """Measure what the mobile backend costs."""
    click.echo(json.dumps(measure(rounds, messages), indent=None if as_json else 2))


if __name__ == "__main__":
    main()
