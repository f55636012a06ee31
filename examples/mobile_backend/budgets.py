"""Budgets: how many private tokens each user may still send.

A plan states its budget in tokens. The ledger counts epsilon: the budget is the exact epsilon of so
many tokens of the plan's variant. It is shared by all chats and processes through Redis, and it is
charged before anything is sent; what is sent again with the same noise is free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from client_lib import AsyncClient, LedgerUnavailableError
from client_lib.ledger import Budget, Ledger, RedisStore, Spending
from client_lib.prompts.types import Draw
from del_core.mechanism import TokenMechanism

from .settings import Plan, Settings

_DELTA = 1e-6


class Budgets:
    """The ledger of the client. Its subjects are ``PLAN:PERSON``; the person is charged."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ledgers: Mapping[str, Ledger] = {}
        self._mechanisms: Mapping[str, TokenMechanism] = {}
        self._opening = asyncio.Lock()

    async def open(self, client: AsyncClient) -> None:
        """Connect to Redis, and compute the plans' epsilons from the server's bundle; once.

        Raises:
            DELClientError: Redis or the server is not there, or has no such variant.
        """
        async with self._opening:
            if self._ledgers:
                return
            bundle = await client.bundle()
            epsilons = {}
            for name, plan in self._settings.plans.items():
                # Half of delta is the ledger's share for equal mechanisms. The factor is for
                # rounding: all of the tokens fit, and one more does not.
                exact = await client.epsilon(plan.variant, delta=_DELTA / 2, tokens=plan.tokens)
                epsilons[name] = exact * (1 + 1e-9)
            store = await asyncio.to_thread(RedisStore, self._settings.redis, prefix="ledger:")
            self._mechanisms = {name: bundle.mechanism(plan.variant) for name, plan in self._settings.plans.items()}
            self._ledgers = {
                name: Ledger(store, budget=Budget(epsilons[name], _DELTA, plan.window))
                for name, plan in self._settings.plans.items()
            }

    def spend(self, subject: str, mechanism: TokenMechanism, draws: Sequence[Draw]) -> Spending:
        """Charge a request; the client calls this before it sends one."""
        plan, _, person = subject.partition(":")
        return self._ledger(plan).spend(person, mechanism, draws)

    async def tokens_left(self, plan: str, person: str) -> int:
        """Return the private tokens that a person may still send."""
        return await asyncio.to_thread(self._ledger(plan).tokens_left, person, self._mechanisms[plan])

    async def shown(self, name: str, plan: Plan, person: str) -> dict[str, Any]:
        """Return a person's budget for the app."""
        left = await self.tokens_left(name, person)
        return {"plan": name, "tokens": plan.tokens, "tokens_left": left, "window_hours": plan.window_hours}

    def close(self) -> None:
        """Close the connections to Redis."""
        for ledger in self._ledgers.values():
            ledger.close()

    def _ledger(self, plan: str) -> Ledger:
        if plan not in self._ledgers:
            raise LedgerUnavailableError("ledger: it is not open yet; nothing has been sent")
        return self._ledgers[plan]
