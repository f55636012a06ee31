"""What Oblivious HTTP costs: python -m benchmarks.oblivious [--rounds N] [--json]

The same completions, directly, sealed for the gateway, and sealed through a relay, over sockets of
this machine. A mock engine generates at once, so that the difference is the path: sealing and
opening on both ends, and with the relay one hop more. Client, relay and server are threads of one
process and share its interpreter, which makes the difference larger than between machines.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client_lib import Client, private
from client_lib.policy import PrivacyPolicy
from client_lib.proxy.server import bind, configure, url_of
from client_lib.relay import Relay, gateway_url
from del_core.ohttp import GatewayKey
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.replica import start_service
from deployments.settings import parse_settings

__all__ = ["measure"]

_SERVER = "https://del.example"
_WORDS = {"16 tokens": 16, "512 tokens": 512}
_OUTPUT = 32


class _Counting:
    """ASGI middleware that counts the bytes of bodies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.received = self.sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            message = await receive()
            self.received += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            self.sent += len(message.get("body", b""))
            await send(message)

        await self._app(scope, received, sent)


@contextmanager
def _running(make: Callable[[], Awaitable[ASGIApp]]) -> Iterator[tuple[str, _Counting]]:
    """Serve an application, made on its own event loop, in a thread."""
    bound = bind("127.0.0.1", 0)
    made: list[tuple[uvicorn.Server, _Counting]] = []
    ready = threading.Event()

    async def run() -> None:
        counting = _Counting(await make())
        server = uvicorn.Server(configure(counting))  # type: ignore[arg-type]
        made.append((server, counting))
        ready.set()
        await server.serve(sockets=[bound])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    if not ready.wait(120):
        raise RuntimeError("an application did not start within 120 s")
    try:
        yield url_of(bound), made[0][1]
    finally:
        made[0][0].should_exit = True
        thread.join(30)
        bound.close()


def measure(rounds: int) -> dict[str, Any]:
    """Return milliseconds (medians) and bytes of bodies, for each size of a prompt."""
    key = GatewayKey.generate()
    settings = parse_settings({"engine": {"kind": "mock", "step_ms": 0.01, "quantum_ms": 0.5, "prompt_token_ms": 0}})

    async def server() -> ASGIApp:
        return create_app(await start_service(settings), APIOptions(gateway_key=key))

    with ExitStack() as stack:
        url, served = stack.enter_context(_running(server))

        async def relay() -> ASGIApp:
            return Relay(gateway_url(url)).app

        relay_url, relayed = stack.enter_context(_running(relay))
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        policy = PrivacyPolicy(max_epsilon_per_token=1e6)
        direct = stack.enter_context(Client(url, cache_dir=cache / "direct", policy=policy))
        hidden = stack.enter_context(
            Client(
                _SERVER,
                relay=relay_url,
                gateway_key=key.config.to_list(),
                cache_dir=cache / "hidden",
                policy=policy,
            )
        )
        sealed = stack.enter_context(
            Client(url, gateway_key=key.config.to_list(), cache_dir=cache / "sealed", policy=policy)
        )
        report: dict[str, Any] = {"rounds": rounds, "output_tokens": _OUTPUT}
        for name, words in _WORDS.items():
            report[name] = {
                "direct": _one(direct, served, words, rounds),
                "sealed": _one(sealed, served, words, rounds),
                "relay": _one(hidden, relayed, words, rounds),
            }
    return report


def _one(client: Client, counting: _Counting, words: int, rounds: int) -> Mapping[str, float]:
    variant = next(iter(client.variants()))
    prompt = client.encode([private(" word" * words)], variant=variant)
    times: dict[str, list[float]] = {"complete_ms": [], "first_chunk_ms": [], "stream_ms": []}
    client.complete(prompt, variant=variant, max_tokens=_OUTPUT)
    received, sent = counting.received, counting.sent
    client.complete(prompt, variant=variant, max_tokens=_OUTPUT)
    sizes = {"request_bytes": counting.received - received, "response_bytes": counting.sent - sent}
    for _ in range(rounds):
        began = time.perf_counter()
        client.complete(prompt, variant=variant, max_tokens=_OUTPUT)
        times["complete_ms"].append(time.perf_counter() - began)
        began = time.perf_counter()
        with client.stream(prompt, variant=variant, max_tokens=_OUTPUT) as stream:
            next(stream)
            times["first_chunk_ms"].append(time.perf_counter() - began)
            for _chunk in stream:
                pass
        times["stream_ms"].append(time.perf_counter() - began)
    return {**sizes, **{name: round(1000 * statistics.median(values), 2) for name, values in times.items()}}


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Completions and streams of each kind.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on one line.")
def main(rounds: int, as_json: bool) -> None:
    """Measure what a relay and a gateway cost."""
    click.echo(json.dumps(measure(rounds), indent=None if as_json else 2))


if __name__ == "__main__":
    main()
