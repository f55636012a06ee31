"""What the client asks of a privacy policy and of a ledger, as protocols: anything that has these methods will do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from client_lib.prompts.encoder import Draw
from del_core.bundle import ClientBundle
from del_core.mechanism import TokenMechanism

__all__ = ["LedgerHook", "PolicyHook"]


class PolicyHook(Protocol):
    """Decides what may be sent, from the verified bundle. Both methods raise ``PolicyViolation``."""

    def check_variant(self, bundle: ClientBundle, variant: str) -> object:
        """Called before a prompt is looked at."""

    def check_prompt(self, bundle: ClientBundle, variant: str, private_tokens: int) -> object:
        """Called before the noise of a prompt with that many private tokens is drawn."""


class LedgerHook(Protocol):
    """Records what is spent. Raises ``BudgetExceeded`` or ``LedgerUnavailable``, and then nothing is sent."""

    def spend(self, subject: str, mechanism: TokenMechanism, draws: Sequence[Draw]) -> object:
        """Charge each draw once, durably, before it returns; draws that are known already cost nothing."""
