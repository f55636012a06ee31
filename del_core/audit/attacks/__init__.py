"""Attacks on released counts, one module each; importing the package registers them."""

# Registered in the order of reports.
from del_core.audit.attacks import nearest, map, sequence, inverter, bidirectional, combined  # noqa: F401  # isort: skip
from del_core.audit.attacks.base import (
    ATTACKS,
    Attack,
    AttackSurface,
    Guesses,
    Knowledge,
    Target,
    TokenAttack,
    register,
)

__all__ = ["ATTACKS", "Attack", "AttackSurface", "Guesses", "Knowledge", "Target", "TokenAttack", "register"]
