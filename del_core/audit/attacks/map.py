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
from del_core.mechanism.likelihood import blocks, map_tokens

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

    The releases of a larger number contain those of a smaller one. k releases of the binomial
    mechanism equal one with k times the trials: for this reason a client that retries sends the
    same bytes. If counts cannot be summed, the log-likelihoods of the releases are.
    """
    wanted = sorted(set(releases))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"releases must be numbers of at least 1, at least one of them, got {list(releases)}")
    fresh = [mechanism.sample(table[token_ids], random_source) for _ in range(wanted[-1])]
    if mechanism.can_sum:
        sums = np.cumsum(fresh, axis=0, dtype=np.int32)
        return {number: map_tokens(mechanism, table, log_prior, sums[number - 1], releases=number) for number in wanted}
    guesses = {number: np.empty(len(token_ids), np.int64) for number in wanted}
    likelihood, prior = mechanism.likelihood(table, np.float64), log_prior.astype(np.float64)
    for here in blocks(len(token_ids), len(prior)):
        scores = prior
        for number, counts in enumerate(fresh, 1):
            scores = scores + likelihood(counts[here])
            if number in guesses:
                guesses[number][here] = np.argmax(scores, axis=1)
    return guesses
