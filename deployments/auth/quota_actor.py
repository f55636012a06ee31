"""The quota ledger in a named Ray actor, and the leases that replicas take from it.

The actor writes each grant into Ray's control store before it answers, and reads the store when it
starts: a ledger that was killed restarts and grants nothing twice. Until then replicas spend the
leases that they hold. All applications of a cluster share one actor, which counts per application.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import ray
from ray.exceptions import RayError
from ray.experimental import internal_kv

from deployments.auth.quotas import Lease, QuotaLedger, QuotaUnavailableError

ACTOR, NAMESPACE = "del-quotas", "del-serve"
_KEY, _SPACE = b"granted", b"del-quotas"


class QuotaActor:
    def __init__(self) -> None:
        stored = internal_kv._internal_kv_get(_KEY, namespace=_SPACE)
        self._ledger = QuotaLedger(json.loads(stored) if stored else None)

    def lease(self, name: str, requests: int | None, tokens: int | None, need: int) -> tuple[int, int, float]:
        """Record a grant, then return it; see ``QuotaLedger.lease``."""
        granted = self._ledger.lease(name, requests, tokens, need)
        if granted.requests:
            state = json.dumps(self._ledger.state()).encode()
            internal_kv._internal_kv_put(_KEY, state, overwrite=True, namespace=_SPACE)
        return granted.requests, granted.tokens, granted.seconds


class RayLeases:
    """Source of leases for ``Quotas``; its first request starts the actor."""

    def __init__(self, application: str, *, timeout_s: float = 2.0) -> None:
        self._application = application
        self._timeout_s = timeout_s
        self._actor: Any = None

    async def __call__(self, name: str, requests: int | None, tokens: int | None, need: int) -> Lease:
        """See ``QuotaLedger.lease``. Raises QuotaUnavailableError."""
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(_actor)
                account = f"{self._application}/{name}"  # no name has a slash
                return Lease(*await self._actor.lease.remote(account, requests, tokens, need))
        except (RayError, TimeoutError, ValueError) as error:
            self._actor = None  # the next request looks it up again
            raise QuotaUnavailableError(f"the quota actor does not answer ({type(error).__name__})") from None


def _actor() -> Any:
    options: dict[str, Any] = {
        "name": ACTOR,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    return ray.remote(QuotaActor).options(**options).remote()
