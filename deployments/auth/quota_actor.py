"""The book of quotas in a named Ray actor, and how replicas ask it for leases.

The actor writes what it has granted into Ray's control store before it answers, and reads it when it starts: a book
that was killed, or whose node died, comes back (``max_restarts``) and grants nothing twice. While it is away replicas
go on spending the leases they hold; after that a request is answered 503 (:class:`QuotaUnavailableError`), or let
through if ``quotas.fail_open`` says so.

Several applications of a cluster have one book with a page for each: what a name may spend is said by an application's
settings, and counted for that application alone.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv

from deployments.auth.quotas import Book, Lease, QuotaUnavailableError

__all__ = ["ACTOR", "NAMESPACE", "QuotaBook", "RayLeases"]

ACTOR, NAMESPACE = "del-quotas", "del-serve"
_KEY, _SPACE = b"granted", b"del-quotas"


class QuotaBook:
    """The actor: a :class:`Book` that outlives its process."""

    def __init__(self) -> None:
        stored = internal_kv._internal_kv_get(_KEY, namespace=_SPACE)
        self._book = Book(json.loads(stored) if stored else None)

    def lease(self, name: str, requests: int | None, tokens: int | None, need: int) -> tuple[int, int, float]:
        """See ``Book.lease``; a grant is recorded before it is given."""
        granted = self._book.lease(name, requests, tokens, need)
        if granted.requests:
            state = json.dumps(self._book.state()).encode()
            internal_kv._internal_kv_put(_KEY, state, overwrite=True, namespace=_SPACE)
        return granted.requests, granted.tokens, granted.seconds


class RayLeases:
    """A source of leases for :class:`deployments.auth.quotas.Quotas`: asks the actor, which the first to ask starts."""

    def __init__(self, application: str, *, timeout_s: float = 2.0) -> None:
        self._application = application
        self._timeout_s = timeout_s
        self._actor: Any = None

    async def __call__(self, name: str, requests: int | None, tokens: int | None, need: int) -> Lease:
        """See ``Book.lease``. Raises QuotaUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(_actor)
                page = f"{self._application}/{name}"  # no name has a slash
                return Lease(*await self._actor.lease.remote(page, requests, tokens, need))
        except (RayError, TimeoutError, ValueError) as error:
            self._actor = None  # perhaps there is another by the next time
            raise QuotaUnavailableError(f"the book of quotas does not answer ({type(error).__name__})") from None


def _actor() -> Any:
    options: dict[str, Any] = {
        "name": ACTOR,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    return ray.remote(QuotaBook).options(**options).remote()
