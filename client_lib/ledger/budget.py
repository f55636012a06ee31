"""A subject's privacy budget, and its spending."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from client_lib._validation import check_positive, check_share, invalid
from del_core.mechanism.base import DEFAULT_DELTA


@dataclass(frozen=True)
class Budget:
    """A limit of ``epsilon`` at ``delta`` for all private tokens of a subject within ``window``.

    Two histories are neighbors if they differ in any of the tokens within the window.

    Args:
        epsilon: in nats, above 0.
        delta: in (0, 1), for the whole window.
        window: how long spending counts; None means forever. Every period of this length keeps
            the budget.
        mixed: whether several noise levels may be spent together. Without it all of delta is for
            one level, and a second level is refused.

    Raises:
        InvalidRequestError: a value is out of range.
    """

    epsilon: float
    delta: float = DEFAULT_DELTA
    window: timedelta | None = timedelta(days=30)
    mixed: bool = True

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        check_share("delta", self.delta)
        window: object = self.window
        if window is not None and not (isinstance(window, timedelta) and window >= timedelta(minutes=1)):
            raise invalid("window", "a timedelta of at least a minute or None", repr(window))


@dataclass(frozen=True)
class Spending:
    """A subject's spending within the window: ``epsilon`` at ``delta``, of ``budget``.

    ``epsilon`` is valid for callers that choose prompts after seeing earlier responses.
    """

    subject: str
    epsilon: float
    delta: float
    budget: float

    @property
    def remaining(self) -> float:
        """The remaining epsilon, at least 0. Epsilons do not add up: it guarantees no request."""
        return max(0.0, self.budget - self.epsilon)
