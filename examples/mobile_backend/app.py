"""A backend for a mobile app: private chats, budgets, streamed answers. README.md is its guide.

DEL_URL=... REDIS_URL=... BACKEND_KEY=... python -m examples.mobile_backend --port 9000

POST   /chats/{chat}/messages   {"id": "...", "text": "..."}: the answer as server-sent events
DELETE /chats/{chat}            forget a chat
GET    /budget                  what the user may still send
GET    /healthz /readyz         for what restarts the process, and for what routes to it
GET    /metrics                 for Prometheus; do not route it from outside
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, StringConstraints
from redis.exceptions import RedisError

from client_lib import DELClientError

from .backend import Backend, Events
from .errors import RefusedError, refusal
from .observe import log
from .settings import Plan, Settings
from .users import FindUser, User, find_user

_MOST_CHARACTERS = 4000

ChatName = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$")]


class Post(BaseModel):
    """A message of the app. Sending one again with its id costs nothing and gets its answer."""

    id: Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_MOST_CHARACTERS)]


def current(request: Request, authorization: Annotated[str, Header()] = "") -> tuple[Backend, User, Plan]:
    """Return the backend, and who asks."""
    backend: Backend = request.app.state.backend
    return backend, *backend.user(authorization)


Current = Annotated[tuple[Backend, User, Plan], Depends(current)]


def create_app(settings: Settings | None = None, find_user: FindUser = find_user) -> FastAPI:
    """Return the application; without settings, they come from the environment."""
    chosen = settings or Settings.from_environment(os.environ)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.backend = backend = Backend(chosen, find_user)
        yield
        await backend.drain()
        await backend.close()

    app = FastAPI(title="Mobile backend", lifespan=lifespan)
    for kind in (RefusedError, DELClientError, RedisError, Exception):  # of the last, uvicorn logs a line, too
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.post("/chats/{chat}/messages")
    async def say(chat: ChatName, post: Post, who: Current) -> StreamingResponse:
        backend, user, plan = who
        events = backend.start(user, plan, chat, post.id, post.text)
        first = await events.get()
        if isinstance(first, RefusedError):  # refusals come before the response has a status
            raise first
        return StreamingResponse(_stream(first, events), media_type="text/event-stream")

    @app.delete("/chats/{chat}", status_code=204)
    async def forget(chat: ChatName, who: Current) -> None:
        backend, user, _ = who
        await backend.chats.delete(backend.named("chat", user.id, chat))

    @app.get("/budget")
    async def budget(who: Current) -> dict[str, Any]:
        backend, user, plan = who
        await backend.budgets.open(backend.client)
        return await backend.budgets.shown(user.plan, plan, backend.named("person", user.id))

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready(request: Request) -> dict[str, str]:
        await request.app.state.backend.check_ready()
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics(request: Request) -> PlainTextResponse:
        return PlainTextResponse(generate_latest(request.app.state.backend.metrics.registry))

    return app


async def _stream(first: dict[str, Any] | None, events: Events) -> AsyncIterator[str]:
    """Yield server-sent events. If the app leaves, the answer goes on without this reader."""
    event: dict[str, Any] | RefusedError | None = first
    while event is not None:
        yield f"data: {json.dumps(event.body if isinstance(event, RefusedError) else event)}\n\n"
        event = await events.get()


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    told = refusal(error)
    if told.code == "internal_error":
        log("failed", level=logging.ERROR, error=error)
    return JSONResponse(told.body, told.status, told.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Say what is wrong with a request, without what was sent: it may be a message."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or "body"
    given = first.get("input")
    found = f"{len(given)} characters" if isinstance(given, str) else f"a {type(given).__name__}"
    told = RefusedError(422, "invalid_request", f"{field}: {first['msg']}, got {found}", field=field)
    return JSONResponse(told.body, told.status)
