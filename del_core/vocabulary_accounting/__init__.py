"""Privacy accounting restricted to the rows of a given vocabulary's table (needs scipy)."""

from del_core.vocabulary_accounting.search import (
    TokenEpsilons,
    VocabularyBound,
    token_epsilons,
    vocabulary_curve,
    vocabulary_epsilon,
)

__all__ = ["TokenEpsilons", "VocabularyBound", "token_epsilons", "vocabulary_curve", "vocabulary_epsilon"]
