"""The averaging attack: the MAP guess after the same prompt was submitted k times with fresh noise.

Privacy loss adds up over releases: k of them equal one release of a mechanism with k times the
trials. A client that retries therefore sends the same bytes again and draws no new counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from del_core.mechanism import TokenMechanism
from del_core.mechanism.likelihood import map_tokens

__all__ = ["averaging_tokens"]


def averaging_tokens(
    mechanism: TokenMechanism,
    table: npt.NDArray[np.integer[Any]],
    log_prior: npt.NDArray[np.floating[Any]],
    token_ids: npt.NDArray[np.int64],
    releases: Sequence[int],
    random_source: Callable[[int], bytes],
) -> dict[int, npt.NDArray[np.int64]]:
    """Return the MAP guesses (tokens,) after each number of fresh releases of ``token_ids``.

    The releases of a larger number contain those of a smaller one.

    Raises:
        ValueError: ``releases`` is empty or holds a number below 1.
    """
    wanted = sorted(set(releases))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"releases must be numbers of at least 1, at least one of them, got {list(releases)}")
    counts = np.zeros((len(token_ids), mechanism.dim), np.int32)
    guesses: dict[int, npt.NDArray[np.int64]] = {}
    for number in range(1, wanted[-1] + 1):
        counts += mechanism.sample(table[token_ids], random_source)
        if number in wanted:
            guesses[number] = map_tokens(mechanism, table, log_prior, counts, releases=number)
    return guesses
