"""Toy kinds that tests register from outside the packages: one section for each kind of thing."""

from __future__ import annotations

# ---------------------------------------------------------------------------------------- attack

ATTACK = "toy"
ATTACK_LABEL = "Most frequent token (toy)"
ATTACK_EXPLANATION = "Guesses the most frequent token everywhere."


def register_attack() -> None:
    """Register an attack that guesses the most frequent token everywhere."""
    import numpy as np

    from del_core.audit.attacks import Attack, Guesses, Target, register

    class MostFrequent(Attack):
        name = ATTACK
        label = ATTACK_LABEL
        explanation = ATTACK_EXPLANATION
        needs = "word frequencies"

        def run(self, target: Target) -> Guesses:
            return Guesses(np.full(target.counts.shape[:2], int(np.argmax(target.surface.log_prior))))

    register(MostFrequent())
