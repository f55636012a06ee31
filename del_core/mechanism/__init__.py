"""Mechanisms: how private tokens become released counts, and the likelihood of those counts."""

from del_core.mechanism.binomial import MAX_BITS, MAX_LEVEL, Mechanism
from del_core.mechanism.likelihood import TokenLikelihood, map_tokens
from del_core.mechanism.randomness import random_bytes

__all__ = ["MAX_BITS", "MAX_LEVEL", "Mechanism", "TokenLikelihood", "map_tokens", "random_bytes"]
