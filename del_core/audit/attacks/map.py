"""The MAP attack: the most probable token of each position, given its counts and word frequencies.

No attack that looks at one position and knows only word frequencies is right more often. An
attacker that knows the language, too, does better; see ``sequence`` and ``inverter``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from del_core.audit.attacks.base import AttackSurface, Counts, Ids, TokenAttack, register
from del_core.audit.leakage import LogPrior, Table
from del_core.mechanism import TokenMechanism
from del_core.mechanism.likelihood import map_tokens

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

    def guess(self, surface: AttackSurface, mechanism: TokenMechanism, counts: Counts) -> Ids:
        """Return the MAP guess of every position."""
        return map_tokens(mechanism, surface.table, surface.log_prior, counts)


register(MapAttack())


def averaging_tokens(
    mechanism: TokenMechanism,
    table: Table,
    log_prior: LogPrior,
    token_ids: Ids,
    releases: Sequence[int],
    random_source: Callable[[int], bytes],
) -> dict[int, Ids]:
    """Return the MAP guesses (tokens,) after each number of fresh releases of ``token_ids``.

    The releases of a larger number contain those of a smaller one. k releases equal one release of
    a mechanism with k times the trials: for this reason a client that retries sends the same bytes.
    """
    wanted = sorted(set(releases))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"releases must be numbers of at least 1, at least one of them, got {list(releases)}")
    counts = np.zeros((len(token_ids), mechanism.dim), np.int32)
    guesses: dict[int, Ids] = {}
    for number in range(1, wanted[-1] + 1):
        counts += mechanism.sample(table[token_ids], random_source)
        if number in wanted:
            guesses[number] = map_tokens(mechanism, table, log_prior, counts, releases=number)
    return guesses
