"""The combined attack: a beam of the causal model over the scores of the bidirectional one.

The bidirectional model judges every position by all counts, but each position alone: two words that
never stand together can both win. The beam search of ``sequence`` joins the positions by the causal
model. Its candidates are those of the bidirectional model, and the scores are added:

    sum_t [ score_t(w_t) + log(lambda r_t^gamma + 1 - lambda) ],
    r_t = p_LM(w_t | w_1 .. w_{t-1}) / prior(w_t).

The left context is in both terms, so gamma is below 1. lambda and gamma are chosen on the
calibration prompts; where the beam does not help, the attack is ``bidirectional``.
"""

from __future__ import annotations

from dataclasses import replace

from del_core.audit.attacks.base import Attack, Counts, Guesses, Knowledge, Target, register
from del_core.audit.attacks.bidirectional import shared_reader
from del_core.audit.attacks.candidates import Candidates, candidates
from del_core.audit.attacks.sequence import SequenceConfig, beam_guesses

COMBINED = "combined"

_GRID = tuple(SequenceConfig(context_weight=0.95, power=power) for power in (0.15, 0.3, 0.5, 0.8))


class CombinedAttack(Attack):
    """Beam search whose candidates and scores come from the bidirectional model."""

    name = COMBINED
    label = "Both together: beam search over what the model read on both sides"
    explanation = (
        "Adds the scores of `bidirectional` and of a beam search with the language model; other text with simulated "
        "noise tunes the weight of the search."
    )
    needs = "word frequencies, the language model, text of the same kind"
    knowledge = Knowledge.TEXT

    def run(self, target: Target) -> Guesses:
        """Train the bidirectional model if no other attack has, then search."""
        trained, size = shared_reader(target), len(target.surface.table)

        def considered(counts: Counts) -> Candidates:
            most = target.config.attacker.candidates
            return candidates(trained.scores, counts, most, size, whole_prompts=True)

        found = beam_guesses(target, considered, _GRID)
        return replace(found, steps=trained.steps, trained_tokens=trained.tokens)


register(CombinedAttack())
