"""An issuer of passes for tests: its key, and a record without Ray."""

from __future__ import annotations

from functools import cache

from del_core.passes import IssuerKey
from deployments.auth.pass_ledger import PassLedger


@cache
def issuer_key(number: int = 0) -> IssuerKey:
    """Return a key; each number has its own, made once."""
    return IssuerKey.generate(f"issuer{number}.example")


class LocalRecord:
    """The record of a server of one process."""

    def __init__(self, ledger: PassLedger) -> None:
        self.ledger = ledger
        self.spent: list[bytes] = []

    async def spend(self, key_id: bytes, nonce: bytes) -> bool:
        self.spent.append(nonce)
        return self.ledger.spend(nonce)

    async def give(self, name: str, limit: int, count: int) -> bool:
        return self.ledger.give(name, limit, count)
