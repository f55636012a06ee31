"""Run the backend: python -m examples.mobile_backend [--host HOST] [--port PORT]

SIGTERM ends it gracefully: no new messages, open answers end, late ones end with an event.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket

import uvicorn
from fastapi import FastAPI

from .app import create_app
from .observe import configure_logging
from .settings import Settings, SettingsError

_CANCEL_S = 15.0


class Server(uvicorn.Server):
    """Tells the backend of the end before uvicorn waits for open connections."""

    def __init__(self, app: FastAPI, host: str, port: int, *, drain: float) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,  # it would name chats
            timeout_graceful_shutdown=round(drain + _CANCEL_S),
        )
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._app.state.backend.drain())
        await super().shutdown(sockets)
        await draining


def main() -> None:
    """Run until a signal."""
    parser = argparse.ArgumentParser(prog="python -m examples.mobile_backend")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    given = parser.parse_args()
    configure_logging()
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        parser.exit(2, f"error: {error}\n")
    Server(create_app(settings), given.host, given.port, drain=settings.drain).run()


if __name__ == "__main__":
    main()
