"""Mechanisms: how private tokens become released counts, and the likelihood of those counts."""

from del_core.mechanism.base import (
    MAX_BITS,
    MAX_LEVEL,
    MECHANISMS,
    Likelihood,
    MechanismSpec,
    TokenMechanism,
    WorstPair,
)
from del_core.mechanism.binomial import BINOMIAL, BinomialMechanism, Mechanism, TokenLikelihood
from del_core.mechanism.categorical import CATEGORICAL, CategoricalMechanism
from del_core.mechanism.likelihood import map_tokens
from del_core.mechanism.randomness import random_bytes

__all__ = [
    "BINOMIAL",
    "CATEGORICAL",
    "MAX_BITS",
    "MAX_LEVEL",
    "MECHANISMS",
    "BinomialMechanism",
    "CategoricalMechanism",
    "Likelihood",
    "Mechanism",
    "MechanismSpec",
    "TokenLikelihood",
    "TokenMechanism",
    "WorstPair",
    "map_tokens",
    "random_bytes",
]
