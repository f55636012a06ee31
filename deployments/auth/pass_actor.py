"""The record of passes in Ray actors, one for each key, that all replicas share.

An actor has the file beside its key open (:mod:`deployments.auth.pass_ledger`). It runs where Ray
puts it: on several machines, the file must be on a volume that they share. An actor that does not
find the file does not start, and nothing can be spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from deployments.auth.pass_ledger import PassLedger, ledger_path
from deployments.auth.passes import PassesUnavailableError

NAMESPACE = "del-passes"


class PassActor:
    """The record of one key."""

    def __init__(self, path: str) -> None:
        self._ledger = PassLedger(Path(path))

    def spend(self, nonce: bytes) -> bool:
        """See ``PassLedger.spend``."""
        return self._ledger.spend(nonce)

    def give(self, name: str, limit: int, count: int) -> bool:
        """See ``PassLedger.give``."""
        return self._ledger.give(name, limit, count)


class RayPassRecord:
    """The records of the keys in force; the first use of each starts its actor."""

    def __init__(self, key_files: Mapping[bytes, Path], *, timeout_s: float = 5.0) -> None:
        """Take the files of the keys by key id, the one that signs first."""
        self._paths = {key_id: str(ledger_path(path).absolute()) for key_id, path in key_files.items()}
        self._signing = next(iter(self._paths))
        self._timeout_s = timeout_s
        self._actors: dict[bytes, Any] = {}

    async def spend(self, key_id: bytes, nonce: bytes) -> bool:
        """See ``PassRecord``."""
        return bool(await self._ask(key_id, "spend", nonce))

    async def give(self, name: str, limit: int, count: int) -> bool:
        """See ``PassRecord``."""
        return bool(await self._ask(self._signing, "give", name, limit, count))

    async def _ask(self, key_id: bytes, method: str, *arguments: object) -> object:
        try:
            async with asyncio.timeout(self._timeout_s):
                if key_id not in self._actors:
                    self._actors[key_id] = await asyncio.to_thread(_actor, key_id, self._paths[key_id])
                return await getattr(self._actors[key_id], method).remote(*arguments)
        except (RayError, TimeoutError, ValueError) as error:
            self._actors.pop(key_id, None)  # the next request looks it up again
            kind = type(error).__name__
            raise PassesUnavailableError(f"the record of passes does not answer ({kind})") from None


def _actor(key_id: bytes, path: str) -> Any:
    options: dict[str, Any] = {
        "name": key_id.hex(),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "num_cpus": 0,
    }
    return ray.remote(PassActor).options(**options).remote(path)
