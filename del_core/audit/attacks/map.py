"""The MAP attack: the most probable token of each position, given its counts and word frequencies.

No attack that looks at one position and knows only word frequencies is right more often. An
attacker that knows the language, too, does better; see ``sequence`` and ``inverter``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from del_core.audit.attacks.base import AttackSurface, TokenAttack, register
from del_core.mechanism import TokenMechanism
from del_core.mechanism.likelihood import map_tokens

__all__ = ["MAP"]

MAP = "map"


class MapAttack(TokenAttack):
    """Guess of the token of greatest posterior probability."""

    name = MAP
    label = "Most probable token, word frequencies known (optimal per token)"
    explanation = (
        "Takes the most probable token, with word frequencies known; no attack on one position alone does better "
        "on average."
    )
    needs = "word frequencies"

    def guess(
        self, surface: AttackSurface, mechanism: TokenMechanism, counts: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int64]:
        """Return the MAP guess of every position."""
        return map_tokens(mechanism, surface.table, surface.log_prior, counts)


register(MapAttack())
