"""Client-side privacy limits, enforced regardless of the server's statements.

Epsilon is computed from the integers that the noise will be drawn with, in the worst case over
every table and tokenizer (``docs/privacy/guarantee.md``). A false manifest, a renamed variant or a
crafted table does not change it.
"""

from __future__ import annotations

import datetime
import functools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from client_lib._validation import check_fingerprint, check_positive, check_share, invalid, must_be
from client_lib.errors import PolicyViolationError
from client_lib.prompts.spans import CLEAR
from del_core.bundle import ClientBundle
from del_core.mechanism import TokenMechanism
from del_core.mechanism.base import DEFAULT_DELTA, MAX_EPSILON_PER_TOKEN


@dataclass(frozen=True)
class PrivacyPolicy:
    """Limits on prompts; None means no limit.

    A client without a policy uses ``PrivacyPolicy()``. Its limits also hold beside a hook of
    another class.

    Args:
        max_epsilon_per_token: largest worst-case epsilon of one replaced private token, in nats.
        max_epsilon_per_prompt: the same for all private tokens of a prompt together.
        delta: the delta of both, in (0, 1).
        min_audit_date: oldest accepted date of the variant's audit, as the bundle states it: a
            guard against a stale bundle, not against a dishonest server.
        variants: accepted variants; ``clear`` must be listed to be used.
        fingerprints: accepted bundles, 64 hexadecimal digits each.

    Raises:
        InvalidRequestError: a limit is out of range.
    """

    max_epsilon_per_token: float | None = MAX_EPSILON_PER_TOKEN
    max_epsilon_per_prompt: float | None = None
    delta: float = DEFAULT_DELTA
    min_audit_date: datetime.date | None = None
    variants: Collection[str] | None = None
    fingerprints: Collection[str] | None = None

    def __post_init__(self) -> None:
        for name in ("max_epsilon_per_token", "max_epsilon_per_prompt"):
            value = getattr(self, name)
            if value is not None:
                check_positive(name, value, "number or None")
        check_share("delta", self.delta)
        date: object = self.min_audit_date
        if date is not None and (not isinstance(date, datetime.date) or isinstance(date, datetime.datetime)):
            raise invalid("min_audit_date", "a datetime.date or None", repr(date))
        for name in ("variants", "fingerprints"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise invalid(name, "a collection of strings or None", repr(value))
            object.__setattr__(self, name, frozenset(value))  # a copy, so that later changes have no effect
        for fingerprint in self.fingerprints or ():
            check_fingerprint("fingerprints", fingerprint)

    def check_variant(self, bundle: ClientBundle, variant: str) -> None:
        """Raise ``PolicyViolationError`` unless the variant may be used for one private token."""
        if self.fingerprints is not None and bundle.fingerprint not in self.fingerprints:
            raise _violation("fingerprint", self.fingerprints, bundle.fingerprint)
        if self.variants is not None and variant not in self.variants:
            raise _violation("variant", self.variants, repr(variant))
        if variant == CLEAR:
            return  # accepts public spans only
        self._check_epsilon(bundle, variant, 1, self.max_epsilon_per_token)
        # A prompt has at least one token, so a limit that refuses every prompt is found early.
        self._check_epsilon(bundle, variant, 1, self.max_epsilon_per_prompt)
        self._check_audit(bundle, variant)

    def check_prompt(self, bundle: ClientBundle, variant: str, private_tokens: int) -> None:
        """Raise ``PolicyViolationError`` unless that many private tokens may be sent at once."""
        self.check_variant(bundle, variant)
        if private_tokens == 0:
            return
        if variant == CLEAR:
            raise PolicyViolationError(f"variant: {CLEAR!r} adds no noise to private spans", field="variant")
        self._check_epsilon(bundle, variant, private_tokens, self.max_epsilon_per_prompt)

    def _check_epsilon(self, bundle: ClientBundle, variant: str, tokens: int, limit: float | None) -> None:
        if limit is None:
            return
        epsilon = exact_epsilon(bundle.mechanism(variant), self.delta, tokens)
        if not epsilon <= limit:
            name = f"the epsilon of {variant} at delta {self.delta:g} for {tokens} private tokens"
            raise PolicyViolationError(must_be(name, f"at most {limit:g}", f"{epsilon:.6g}"), field="variant")

    def _check_audit(self, bundle: ClientBundle, variant: str) -> None:
        if self.min_audit_date is None:
            return
        stated = bundle.variants[variant].audit.get("date")
        try:
            date = datetime.date.fromisoformat(stated) if isinstance(stated, str) else None
        except ValueError:
            date = None
        if date is None or date < self.min_audit_date:
            wanted = f"{self.min_audit_date.isoformat()} or later"
            found = "no date" if date is None else date.isoformat()
            raise PolicyViolationError(must_be(f"the audit date of {variant}", wanted, found), field="variant")


DEFAULT_POLICY: Final = PrivacyPolicy()
"""The limits of a client that has no policy."""


def _violation(field: str, accepted: Collection[str], found: str) -> PolicyViolationError:
    return PolicyViolationError(must_be(field, f"one of {', '.join(sorted(accepted)) or 'none'}", found), field=field)


def exact_epsilon(mechanism: TokenMechanism, delta: float, tokens: int) -> float:
    """Return the exact worst-case epsilon, infinite beyond the range of the accounting."""
    from del_core import accounting  # imported only where a limit is set, since it is slow

    if mechanism.charge(tokens)[1] > accounting.MAX_TRIALS:
        return math.inf
    return known_epsilon(mechanism, delta, tokens)


@functools.lru_cache(maxsize=1024, typed=True)
def known_epsilon(mechanism: TokenMechanism, delta: float, tokens: int) -> float:
    """Return the exact epsilon, computed once. Raises as ``accounting.epsilon``."""
    from del_core import accounting

    return accounting.epsilon(mechanism, delta, tokens)
