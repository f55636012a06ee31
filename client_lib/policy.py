"""What a caller accepts: limits that hold whatever a server claims.

A bundle comes from the server, so nothing that it states about its own privacy is believed. Epsilon is computed here
from the integers that the noise will be drawn with (bits, dimension, ratio 2^31), in the worst case over every table
and every tokenizer (``docs/privacy/guarantee.md``): a manifest with flattering claims, a variant that was given the
name of a
stricter one, or a table made to spread its tokens changes nothing about the figure that is compared.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from client_lib._validation import invalid
from client_lib.errors import PolicyViolation
from client_lib.prompts.spans import CLEAR
from del_core.bundle import ClientBundle
from del_core.mechanism import TokenMechanism

__all__ = ["PrivacyPolicy"]


@dataclass(frozen=True)
class PrivacyPolicy:
    """Limits on what may be sent; None is no limit.

    Args:
        max_epsilon_per_token: most epsilon, in nats, for one replaced private token, in the worst case.
        max_epsilon_per_prompt: the same for all private tokens of one prompt together.
        delta: at which both are computed, in (0, 1).
        min_audit_date: oldest date of the variant's audit that is accepted. The date is the bundle's own word: it
            guards against a stale bundle, not against a server that lies.
        variants: names that are allowed; ``clear`` must be among them to be used.
        fingerprints: bundles that are allowed, 64 hexadecimal digits each.

    Raises:
        InvalidRequest: a limit is out of range; the message names it.
    """

    max_epsilon_per_token: float | None = None
    max_epsilon_per_prompt: float | None = None
    delta: float = 1e-6
    min_audit_date: datetime.date | None = None
    variants: Collection[str] | None = None
    fingerprints: Collection[str] | None = None

    def __post_init__(self) -> None:
        for name in ("max_epsilon_per_token", "max_epsilon_per_prompt"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 < value < math.inf):
                raise invalid(name, repr(value), "a positive number, or None")
        if not (_is_number(self.delta) and 0 < self.delta < 1):
            raise invalid("delta", repr(self.delta), "a number between 0 and 1")
        date: object = self.min_audit_date
        if date is not None and (not isinstance(date, datetime.date) or isinstance(date, datetime.datetime)):
            raise invalid("min_audit_date", repr(date), "a datetime.date, or None")
        for name in ("variants", "fingerprints"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise invalid(name, repr(value), "a collection of strings, or None")
            object.__setattr__(self, name, frozenset(value))  # later changes of a caller's list do not count
        for fingerprint in self.fingerprints or ():
            if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
                raise invalid("fingerprints", repr(fingerprint), "64 hexadecimal digits in lower case")

    def check_variant(self, bundle: ClientBundle, variant: str) -> None:
        """Raise :class:`PolicyViolation` unless the variant of this bundle may be used for a private token."""
        if self.fingerprints is not None and bundle.fingerprint not in self.fingerprints:
            raise PolicyViolation(
                f"fingerprint: {bundle.fingerprint}; allowed: {', '.join(sorted(self.fingerprints)) or 'none'}",
                field="fingerprint",
            )
        if self.variants is not None and variant not in self.variants:
            raise PolicyViolation(
                f"variant: {variant!r}; allowed: {', '.join(sorted(self.variants)) or 'none'}", field="variant"
            )
        if variant == CLEAR:
            return  # has public spans only
        self._check_epsilon(bundle.mechanism(variant), 1, self.max_epsilon_per_token, variant, "a token")
        # A prompt has a token at least; what refuses every prompt is said before one is looked at.
        self._check_epsilon(bundle.mechanism(variant), 1, self.max_epsilon_per_prompt, variant, "a prompt of 1 token")
        self._check_audit(bundle, variant)

    def check_prompt(self, bundle: ClientBundle, variant: str, private_tokens: int) -> None:
        """Raise :class:`PolicyViolation` unless a prompt with that many private tokens may be sent."""
        self.check_variant(bundle, variant)
        if private_tokens == 0:
            return
        if variant == CLEAR:
            raise PolicyViolation(f"variant: {CLEAR!r} adds no noise; allowed: public spans only", field="variant")
        what = f"a prompt of {private_tokens} private tokens"
        self._check_epsilon(bundle.mechanism(variant), private_tokens, self.max_epsilon_per_prompt, variant, what)

    def _check_epsilon(
        self, mechanism: TokenMechanism, tokens: int, limit: float | None, variant: str, what: str
    ) -> None:
        if limit is None:
            return
        epsilon = _epsilon(mechanism, self.delta, tokens)
        if not epsilon <= limit:
            raise PolicyViolation(
                f"variant {variant}: {what} costs epsilon {epsilon:.6g} at delta {self.delta:g} in the worst case; "
                f"allowed: {limit:g}",
                field="variant",
            )

    def _check_audit(self, bundle: ClientBundle, variant: str) -> None:
        if self.min_audit_date is None:
            return
        said = bundle.variants[variant].audit.get("date")
        try:
            date = datetime.date.fromisoformat(said) if isinstance(said, str) else None
        except ValueError:
            date = None
        if date is None or date < self.min_audit_date:
            found = "has no date" if date is None else f"is of {date.isoformat()}"
            raise PolicyViolation(
                f"variant {variant}: its audit {found}; allowed: {self.min_audit_date.isoformat()} or later",
                field="variant",
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.lru_cache(maxsize=1024)
def _epsilon(mechanism: TokenMechanism, delta: float, tokens: int) -> float:
    """Exact worst-case epsilon; infinite beyond what the accounting handles, which no limit allows."""
    from del_core import accounting  # loads only for those who set a limit

    if mechanism.charge(tokens)[1] > accounting.MAX_TRIALS:
        return math.inf
    return accounting.epsilon(mechanism, delta, tokens)
