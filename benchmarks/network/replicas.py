"""The replicas of a simulated machine, and HAProxy beside them.

    python -m benchmarks.network.replicas ADDRESS FIRST_PORT COUNT STEP_MS

The replicas share a process: each is the application with a mock engine of its own, and a port of
its own. HAProxy reads ``/tmp/haproxy.cfg``. The end of either ends the process.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.local.proxy import haproxy_binary
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.replica import start_service
from deployments.settings import parse_settings

__all__ = ["main"]


def checked(app: ASGIApp) -> ASGIApp:
    """Answer HAProxy's checks, as Ray Serve does for a replica."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith("/-/"):
            await PlainTextResponse("success")(scope, receive, send)
        else:
            await app(scope, receive, send)

    return answer


async def _run(address: str, ports: range, step_ms: float) -> None:
    settings = parse_settings({"engine": {"kind": "mock", "step_ms": step_ms}})
    servers = []
    for port in ports:
        app = create_app(await start_service(settings), APIOptions(http=settings.http))
        servers.append(uvicorn.Server(uvicorn.Config(checked(app), host=address, port=port, log_level="error")))
    os.makedirs("/tmp/haproxy-serve", exist_ok=True)
    haproxy = await asyncio.create_subprocess_exec(str(haproxy_binary()), "-db", "-f", "/tmp/haproxy.cfg")
    running = [asyncio.ensure_future(one) for one in (haproxy.wait(), *(server.serve() for server in servers))]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)


def main() -> None:
    """Serve until a part has ended."""
    address, first, count, step_ms = sys.argv[1:]
    asyncio.run(_run(address, range(int(first), int(first) + int(count)), float(step_ms)))


if __name__ == "__main__":
    main()
