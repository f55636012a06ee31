"""Exact privacy accounting: one mechanism, compositions, and products of randomised pairs."""

from del_core.accounting.binomial import MAX_TRIALS, delta, epsilon, gdp_delta, gdp_epsilon, mu, trade_off
from del_core.accounting.composition import DEFAULT_ORDERS, Composition, RenyiCurve
from del_core.accounting.product_pair import Bracket, ProductPair, renyi_delta, renyi_epsilon

__all__ = [
    "DEFAULT_ORDERS",
    "MAX_TRIALS",
    "Bracket",
    "Composition",
    "ProductPair",
    "RenyiCurve",
    "delta",
    "epsilon",
    "gdp_delta",
    "gdp_epsilon",
    "mu",
    "renyi_delta",
    "renyi_epsilon",
    "trade_off",
]
