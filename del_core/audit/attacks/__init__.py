"""Attacks on released counts, one module each; importing the package registers them."""

# isort: off
# Registered in the order of reports.
from del_core.audit.attacks import nearest
from del_core.audit.attacks import map
from del_core.audit.attacks import sequence
from del_core.audit.attacks import inverter

# isort: on
from del_core.audit.attacks.base import (
    ATTACKS,
    Attack,
    AttackSurface,
    Guesses,
    Target,
    TokenAttack,
    recovery,
    register,
    reproducible_bytes,
    token_attacks,
)

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackSurface",
    "Guesses",
    "Target",
    "TokenAttack",
    "inverter",
    "map",
    "nearest",
    "recovery",
    "register",
    "reproducible_bytes",
    "sequence",
    "token_attacks",
]
