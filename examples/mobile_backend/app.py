"""A backend for a mobile app: a chat endpoint whose answers arrive as a stream.

    DEL_URL=http://127.0.0.1:8000 uvicorn --factory examples.mobile_backend.app:create_app --port 9000

    curl -N http://127.0.0.1:9000/chat -H 'authorization: Bearer alice-token' \\
         -H 'content-type: application/json' -d '{"text": "The doctor says that my fever will not go down."}'

The app gets server-sent events: {"text": "..."} for every piece, {"finish_reason": "..."} at the end, and
{"error": "..."} where an answer breaks off. What fails before the first piece has a status of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from client_lib import AsyncClient, AsyncStream, Chunk, DELClientError, InvalidRequest, Overloaded, private, public

VARIANT = os.environ.get("VARIANT", "balanced")

# In a real backend: your sessions.
USERS = {"alice-token": "alice", "bob-token": "bob"}


class Message(BaseModel):
    """What the app sends."""

    text: str = Field(min_length=1, max_length=4000)


def current_user(authorization: Annotated[str, Header()] = "") -> str:
    """Who asks."""
    user = USERS.get(authorization.removeprefix("Bearer "))
    if user is None:
        raise HTTPException(401, "unknown token")
    return user


def create_app() -> FastAPI:
    """The application. One client serves all requests: it holds the connections and the bundle."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncClient(os.environ["DEL_URL"], api_key=os.environ.get("DEL_API_KEY")) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(DELClientError, refuse)

    @app.post("/chat")
    async def chat(
        message: Message, request: Request, user: Annotated[str, Depends(current_user)]
    ) -> StreamingResponse:
        client: AsyncClient = request.app.state.client
        prompt = [public("Question:"), private(f" {message.text}"), public("\nAnswer:")]
        stream = client.stream(prompt, variant=VARIANT, max_tokens=64)
        try:
            first = await anext(stream)  # whatever is refused is refused here, before the answer has a status
        except BaseException:
            await stream.close()
            raise
        return StreamingResponse(events(first, stream), media_type="text/event-stream")

    return app


async def events(first: Chunk, stream: AsyncStream) -> AsyncIterator[str]:
    """The answer for the app; generation stops when the app closes the connection."""
    async with stream:
        try:
            yield event(text=first.text)
            async for chunk in stream:
                yield event(text=chunk.text)
            assert stream.completion is not None
            yield event(finish_reason=stream.completion.finish_reason)
        except DELClientError as error:
            yield event(error=type(error).__name__)


def event(**data: str) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """The answer for an error of the client; its message holds nothing of a prompt."""
    if isinstance(error, InvalidRequest):
        return JSONResponse({"error": str(error)}, 400)
    if isinstance(error, Overloaded):
        return JSONResponse({"error": "busy"}, 503, {"retry-after": f"{error.retry_after or 1:.0f}"})
    return JSONResponse({"error": type(error).__name__}, 502)
