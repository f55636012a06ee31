"""The averaging attack: the same prompt submitted k times with fresh noise.

Privacy adds up over releases: k of them are as good as one of a mechanism with k times the trials. This is why a client
that retries sends the same bytes again and never draws new counts for the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.mechanism import Mechanism
from del_core.mechanism.likelihood import TokenLikelihood, blocks

__all__ = ["averaging_tokens"]


def averaging_tokens(
    mechanism: Mechanism,
    table: npt.NDArray[np.integer[Any]],
    log_prior: npt.NDArray[np.floating[Any]],
    token_ids: npt.NDArray[np.int64],
    releases: Sequence[int],
    random_source: Callable[[int], bytes],
) -> dict[int, npt.NDArray[np.int64]]:
    """The MAP guesses (tokens,) after each number of fresh releases of ``token_ids`` (tokens,).

    The releases of a larger number contain those of a smaller one.

    Raises:
        ValueError: if ``releases`` is empty or holds a number below 1.
    """
    wanted = sorted(set(releases))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"releases: {list(releases)}; at least one number, each at least 1, is needed")
    likelihood = TokenLikelihood.of(mechanism, table)
    prior = log_prior.astype(np.float32)
    counts = np.zeros((len(token_ids), mechanism.dim), np.int32)
    guesses: dict[int, npt.NDArray[np.int64]] = {}
    for number in range(1, wanted[-1] + 1):
        counts += mechanism.sample(table[token_ids], random_source)
        if number in wanted:
            parts = [
                np.argmax(likelihood(counts[here], number) + prior, axis=1) for here in blocks(len(counts), len(prior))
            ]
            guesses[number] = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return guesses
