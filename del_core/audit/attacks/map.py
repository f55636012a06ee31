"""The MAP attack: the most probable token of each position given its counts and a unigram prior."""

from del_core.mechanism.likelihood import map_tokens

__all__ = ["map_tokens"]
