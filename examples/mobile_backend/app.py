"""A backend for a mobile app: a chat endpoint, a privacy budget per user, streamed answers.

    DEL_URL=http://127.0.0.1:8000 uvicorn --factory examples.mobile_backend.app:create_app \\
        --port 9000

    curl -N http://127.0.0.1:9000/chats/1/messages -H 'authorization: Bearer alice-token' \\
         -H 'content-type: application/json' \\
         -d '{"text": "The doctor says that my fever will not go down."}'

The app receives server-sent events: {"text": "..."} for every chunk, {"finish_reason": "..."} at
the end, and {"error": "..."} if an answer breaks off. A failure before the first chunk has a status
of its own: 429 with Retry-After for a user whose budget is spent. Nothing of that message has left
the backend.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from client_lib import (
    AsyncClient,
    AsyncStream,
    BudgetExceededError,
    Chunk,
    DELClientError,
    InvalidRequestError,
    OverloadedError,
)
from client_lib.conversation import AsyncConversation
from client_lib.ledger import Budget, Ledger, SQLiteStore
from client_lib.prompts.chat import ChatTemplate, Message

VARIANT = os.environ.get("VARIANT", "balanced")
BUDGET = Budget(epsilon=float(os.environ.get("BUDGET_EPSILON", "20000")), window=timedelta(days=30))
TEMPLATE = ChatTemplate.simple({"user": "User:", "assistant": "Assistant:"}, answer="Assistant:")
MAX_CHATS = 1000

# In a real backend: your sessions. A user's name is the subject that the ledger keeps the spending
# of.
USERS = {"alice-token": "alice", "bob-token": "bob"}


class Post(BaseModel):
    """A message of the app."""

    text: str = Field(min_length=1, max_length=4000)


@dataclass
class Chat:
    """A user's chat. Its conversation reuses the counts of earlier messages."""

    conversation: AsyncConversation
    messages: list[Message] = field(default_factory=list, repr=False)


class Chats:
    """The chats of all users, in memory; the least recently used ones are dropped."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._chats: OrderedDict[tuple[str, str], Chat] = OrderedDict()

    def get(self, user: str, name: str) -> Chat:
        """A user's chat, begun if there is none."""
        if (user, name) not in self._chats:
            client = self._client.with_options(subject=user)
            self._chats[user, name] = Chat(client.conversation(variant=VARIANT, template=TEMPLATE))
        self._chats.move_to_end((user, name))
        if len(self._chats) > MAX_CHATS:
            self._chats.popitem(last=False)
        return self._chats[user, name]


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
        ledger = Ledger(SQLiteStore(os.environ.get("LEDGER", "privacy.db")), budget=BUDGET)
        async with AsyncClient(os.environ["DEL_URL"], api_key=os.environ.get("DEL_API_KEY"), ledger=ledger) as client:
            app.state.chats = Chats(client)
            yield
        ledger.close()

    app = FastAPI(lifespan=lifespan)
    app.add_exception_handler(DELClientError, refuse)

    @app.post("/chats/{name}/messages")
    async def say(
        name: str, post: Post, request: Request, user: Annotated[str, Depends(current_user)]
    ) -> StreamingResponse:
        chat: Chat = request.app.state.chats.get(user, name)
        messages = [*chat.messages, Message("user", f" {post.text}")]
        stream = chat.conversation.stream(messages, max_tokens=64)
        first = await anext(stream)  # refusals come here, before the response has a status
        return StreamingResponse(events(chat, messages, first, stream), media_type="text/event-stream")

    return app


async def events(chat: Chat, messages: list[Message], first: Chunk, stream: AsyncStream) -> AsyncIterator[str]:
    """Yield the answer for the app; generation stops when the app disconnects."""
    async with stream:
        try:
            yield event(text=first.text)
            async for chunk in stream:
                yield event(text=chunk.text)
            assert stream.completion is not None
            chat.messages = [*messages, Message("assistant", stream.completion.text)]
            yield event(finish_reason=stream.completion.finish_reason)
        except DELClientError as error:
            yield event(error=type(error).__name__)


def event(**data: str) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(data)}\n\n"


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Return the response for an error, whose message contains nothing of a prompt."""
    if isinstance(error, BudgetExceededError):
        seconds = (error.retry_at - datetime.now(UTC)).total_seconds() if error.retry_at else None
        headers = {"retry-after": str(max(1, round(seconds)))} if seconds else {}
        return JSONResponse({"error": "no privacy budget left"}, 429, headers)
    if isinstance(error, InvalidRequestError):
        return JSONResponse({"error": str(error)}, 400)
    if isinstance(error, OverloadedError):
        return JSONResponse({"error": "busy"}, 503, {"retry-after": f"{error.retry_after or 1:.0f}"})
    return JSONResponse({"error": type(error).__name__}, 502)
