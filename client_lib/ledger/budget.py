"""How much a subject may spend, and what it has spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from client_lib._validation import invalid

__all__ = ["Budget", "Spending"]


@dataclass(frozen=True)
class Budget:
    """At most ``epsilon`` at ``delta`` for what a subject's private tokens reveal together within ``window``.

    Two prompts' histories are neighbours if one could be the other with any of the tokens in the window replaced: the
    budget is for all of them at once. Args:

        epsilon: in nats, above 0.
        delta: in (0, 1), for the whole window.
        window: how long spending counts; None for ever. Every span of time of this length keeps the budget.
        mixed: whether several noise levels may be spent together; without it all of delta is for one level, and a
            second one is refused.

    Raises:
        InvalidRequest: a value is out of range; the message names it.
    """

    epsilon: float
    delta: float = 1e-6
    window: timedelta | None = timedelta(days=30)
    mixed: bool = True

    def __post_init__(self) -> None:
        if not (_is_number(self.epsilon) and 0 < self.epsilon < math.inf):
            raise invalid("epsilon", repr(self.epsilon), "a positive number")
        if not (_is_number(self.delta) and 0 < self.delta < 1):
            raise invalid("delta", repr(self.delta), "a number between 0 and 1")
        window: object = self.window
        if window is not None and not (isinstance(window, timedelta) and window >= timedelta(minutes=1)):
            raise invalid("window", repr(window), "a timedelta of at least a minute, or None")

    @property
    def bucket_s(self) -> float:
        """Seconds of spending that are kept, and expire, together: a 720th of the window (an hour of 30 days)."""
        return math.inf if self.window is None else self.window.total_seconds() / 720


@dataclass(frozen=True)
class Spending:
    """What a subject has spent within the window: ``epsilon`` at ``delta``, of ``budget``.

    ``epsilon`` is what the budget is compared with, so it holds for a caller that chooses what to send in view of
    earlier answers; with one noise level it is the exact figure at its share of ``delta``.
    """

    subject: str
    epsilon: float
    delta: float
    budget: float

    @property
    def remaining(self) -> float:
        """Epsilon that is left, at least 0. Epsilons do not simply add up, so this is no promise for a request."""
        return max(0.0, self.budget - self.epsilon)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
