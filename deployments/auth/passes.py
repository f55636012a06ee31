"""Passes in place of API keys: who may have how many, and that each is spent once.

An API key buys passes, so many a day; a pass buys one completion of limited length. The signature
is blind, so nobody can tell which key a pass was given to (:mod:`del_core.passes`). All replicas
share one record (:mod:`deployments.auth.pass_ledger`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from del_core.errors import INVALID_VALUE, DelError, FrameError
from del_core.passes import IssuerKey, PassError, answer_to, check_pass, check_requests, presented, read_requests
from deployments.auth.keys import Caller
from deployments.auth.quotas import QuotaExceededError

_SPENT = "Authorization must hold a pass that was not spent, got one that was"
_REMEMBERED = 1 << 16  # spent passes that a replica remembers, about 10 MB
_LATER_S = 3600  # after which a client may ask again; the day may end earlier or later


class InvalidPassError(DelError):
    """A request has a pass that is none, or of another issuer, or needs one and has none."""


class PassSpentError(DelError):
    """A pass was spent before."""


class PassesUnavailableError(DelError):
    """The record of passes does not answer, so nothing can be spent."""


class PassRecord(Protocol):
    """The record that all replicas share. Both methods raise ``PassesUnavailableError``."""

    async def spend(self, key_id: bytes, nonce: bytes) -> bool:
        """Spend a pass; return False if it was spent before."""

    async def give(self, name: str, limit: int, count: int) -> bool:
        """Count passes for a name; return False if that would be more than ``limit`` a day."""


@dataclass(frozen=True, slots=True)
class HeldPass:
    """A pass whose signature was checked, and which is not yet spent."""

    key_id: bytes
    nonce: bytes = field(repr=False)


@dataclass(frozen=True)
class Passes:
    """The passes of a server.

    Args:
        keys: keys in force; the first one signs.
        record: what all replicas share.
        tokens: the most tokens of a prompt and its answer that a pass pays for.
        required: whether API keys buy passes only.
    """

    keys: Sequence[IssuerKey]
    record: PassRecord
    tokens: int
    required: bool = False
    _spent: dict[bytes, None] = field(default_factory=dict, init=False, repr=False)

    @property
    def key(self) -> IssuerKey:
        """The key that signs."""
        return self.keys[0]

    def challenge(self) -> str:
        """Return the value of ``WWW-Authenticate`` for a request without a valid pass."""
        return self.key.config.header()

    def presented(self, authorization: str | None) -> HeldPass | None:
        """Return the pass of a request, or None for another scheme.

        Raises InvalidPassError; PassSpentError if this replica knows that it was spent, so that
        nobody makes it read large bodies for one pass.
        """
        try:
            data = presented(authorization)
            held = None if data is None else HeldPass(*check_pass([key.config for key in self.keys], data))
        except PassError as error:
            raise InvalidPassError(str(error)) from None
        if held is not None and held.nonce in self._spent:
            raise PassSpentError(_SPENT)
        return held

    @staticmethod
    def caller() -> Caller:
        """Return the caller of a request with a pass: nobody, who shares no cache with anybody."""
        return Caller("pass", cache_salt=secrets.token_hex(16))

    async def spend(self, held: HeldPass, tokens: int) -> None:
        """Spend a pass on a request for ``tokens`` tokens.

        Raises FrameError for more tokens than a pass pays for, PassSpentError,
        PassesUnavailableError.
        """
        if tokens > self.tokens:
            message = f"plus the prompt must be at most {self.tokens} tokens for a pass, got {tokens}"
            raise FrameError(INVALID_VALUE, "header.max_tokens", message)
        is_first = await self.record.spend(held.key_id, held.nonce)
        self._spent[held.nonce] = None
        if len(self._spent) > _REMEMBERED:
            del self._spent[next(iter(self._spent))]
        if not is_first:
            raise PassSpentError(_SPENT)

    async def give(self, caller: Caller, kind: str, body: bytes) -> bytes:
        """Return the answer to a caller's request, of this media type, for passes.

        They are counted before they are signed. Raises FrameError for a body that is no request,
        QuotaExceededError, PassesUnavailableError.
        """
        try:
            requests = read_requests(kind, body)
            check_requests(self.key, requests)
            limit = caller.passes_per_day or 0
            if not limit or not await self.record.give(caller.name, limit, len(requests)):
                raise QuotaExceededError(f"passes: this API key gets {limit} a day", _LATER_S)
            return await asyncio.to_thread(answer_to, self.key, kind, requests)
        except PassError as error:
            raise FrameError(INVALID_VALUE, "body", f"must be a request for passes: {error}") from None
