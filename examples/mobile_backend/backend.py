"""What all requests share: connections, and the tasks that answer messages."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict
from typing import Any

from redis.asyncio import Redis

from client_lib import AsyncClient

from .answers import Answers, Ask, Facts
from .budgets import Budgets
from .chats import Chats
from .errors import RefusedError, refusal, restarting
from .limits import RateLimits
from .observe import Metrics, log
from .settings import Plan, Settings
from .turns import Turns
from .users import FindUser, User

Events = asyncio.Queue[dict[str, Any] | RefusedError | None]
"""The events of an answer; a refusal may stand in place of the last one, and None ends them."""


class Backend:
    """What all requests share, from the start of the process to its end."""

    def __init__(self, settings: Settings, find_user: FindUser) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.redis: Redis = Redis.from_url(
            settings.redis, socket_timeout=10, socket_connect_timeout=settings.timeout.connect
        )
        self.budgets = Budgets(settings)
        self.client = AsyncClient(
            settings.server, api_key=settings.api_key, ledger=self.budgets, timeout=settings.timeout, max_retries=3
        )
        self.chats = Chats(self.redis, settings.derived("chats"))
        turns = Turns(self.redis, settings.most_waiting, settings.silence)
        self.answers = Answers(settings, self.client, self.budgets, self.chats, turns, RateLimits(self.redis))
        self.is_draining = False
        self._find_user = find_user
        self._tasks: set[asyncio.Task[None]] = set()

    def user(self, authorization: str) -> tuple[User, Plan]:
        """Return who asks. Raises ``RefusedError``."""
        user = self._find_user(authorization.removeprefix("Bearer "))
        if user is None:
            raise RefusedError(401, "unknown_token", "authorization: must be a bearer token of a user")
        return user, self.settings.plans[user.plan]

    def named(self, purpose: str, *names: str) -> str:
        """Return a pseudonym, which differs between purposes."""
        return self.settings.derived(purpose, *names).hex()[:32]

    def start(self, user: User, plan: Plan, chat: str, message_id: str, text: str) -> Events:
        """Start to answer a message; returns its events, None behind the last."""
        if self.is_draining:
            raise restarting()
        if len(self._tasks) >= self.settings.most_answers:
            raise RefusedError(503, "backend_busy", "too many messages at once", retry_after=1)
        person, name = self.named("person", user.id), self.named("chat", user.id, chat)
        events: Events = asyncio.Queue()
        task = asyncio.create_task(self._work(Ask(person, user.plan, plan, name, message_id, text), events))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return events

    async def _work(self, ask: Ask, events: Events) -> None:
        start, first_text = time.monotonic(), 0.0

        def emit(event: dict[str, Any]) -> None:
            nonlocal first_text
            if not first_text:
                first_text = time.monotonic() - start
                self.metrics.first_text.observe(first_text)
            events.put_nowait(event)

        facts, outcome, failure = Facts(), "answered", None
        try:
            with self.metrics.in_progress.track_inprogress():
                facts = await self.answers.answer(ask, emit)
        except asyncio.CancelledError:  # by drain: the app is told, and sends the message again
            failure, outcome = None, "restarting"
            events.put_nowait(restarting())
        except Exception as error:
            told = refusal(error)
            outcome = told.code
            failure = None if isinstance(error, RefusedError) else error
            events.put_nowait(told)
        events.put_nowait(None)
        self.metrics.messages.labels(ask.plan_name, outcome).inc()
        if outcome == "answered" and not facts.replayed:
            self.metrics.private_tokens.labels(ask.plan_name).inc(facts.private_tokens)
            self.metrics.left_out.labels(ask.plan_name).inc(facts.left_out)
        log(
            "message",
            level=logging.INFO if failure is None else logging.WARNING,
            error=failure,
            user=self.named("log", ask.person),
            chat=self.named("log", ask.chat),
            plan=ask.plan_name,
            outcome=outcome,
            first_text_s=round(first_text, 3),
            seconds=round(time.monotonic() - start, 3),
            **asdict(facts),
        )

    async def check_ready(self) -> None:
        """Ask Redis and the server. Raises ``RefusedError``, and as both clients do."""
        if self.is_draining:
            raise restarting()
        await self.redis.ping()
        await self.answers.check_server()
        await self.budgets.open(self.client)

    async def drain(self) -> None:
        """Refuse new messages, let answers end for a while, then tell the apps of the others."""
        self.is_draining = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self.settings.drain)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=5)

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()
        await self.redis.aclose()
        self.budgets.close()
