"""The tokens that a sequence attack considers at each position, and their scores.

A real vocabulary has tens of thousands of tokens, of which the counts of a position leave few. An
attack that searches over sequences looks at the ``k`` of greatest score only. It is exact but for
true tokens outside of them, which it cannot guess; :meth:`Candidates.covered` measures their share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from del_core.audit.attacks.base import Counts, Ids
from del_core.audit.leakage import LogPrior
from del_core.mechanism.base import Likelihood
from del_core.mechanism.likelihood import blocks

Scores = Callable[[Counts], torch.Tensor]
"""Maps the counts (prompts, tokens, dim) of some prompts to token scores (prompts, tokens, V)."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Token ids (prompts, tokens, k), and their log scores up to a constant of each position."""

    ids: torch.Tensor
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, here: slice) -> Candidates:
        return Candidates(self.ids[here], self.scores[here])

    @property
    def length(self) -> int:
        """Tokens of a prompt."""
        return self.ids.shape[1]

    def best(self) -> Ids:
        """Return the token of greatest score of each position (prompts, tokens)."""
        best = self.scores.argmax(dim=2, keepdim=True)
        found: npt.NDArray[np.int64] = self.ids.gather(2, best).squeeze(2).numpy()
        return found

    def covered(self, token_ids: Ids) -> float:
        """Return the share of ``token_ids`` (prompts, tokens) that are among the candidates."""
        return float((self.ids == torch.from_numpy(token_ids).unsqueeze(2)).any(dim=2).double().mean())


def posterior_scores(likelihood: Likelihood, log_prior: LogPrior) -> Scores:
    """Return the scores of single positions: log-likelihood plus log prior."""
    prior = torch.from_numpy(log_prior.astype(np.float32))
    return lambda counts: torch.from_numpy(likelihood(counts)).float() + prior


def candidates(
    scores: Scores, counts: Counts, most: int, vocabulary_size: int, *, whole_prompts: bool = False
) -> Candidates:
    """Return the ``most`` best-scored tokens of every position of counts (prompts, tokens, dim).

    Scores are computed in blocks, so memory does not grow with prompts times vocabulary.

    Args:
        whole_prompts: whether the scores of a position depend on the whole prompt.
    """
    if counts.ndim != 3 or counts.shape[1] < 1:
        raise ValueError(f"counts must have shape (prompts, tokens, dim) with tokens >= 1, got {counts.shape}")
    prompts, length, dim = counts.shape
    flat = counts if whole_prompts else counts.reshape(prompts * length, 1, dim)
    kept = min(most, vocabulary_size)
    ids, best = [torch.empty((0, kept), dtype=torch.int64)], [torch.empty((0, kept))]
    with torch.no_grad():
        for here in blocks(len(flat), flat.shape[1] * vocabulary_size, 1 << 24):
            found = scores(flat[here]).flatten(0, 1).topk(kept, dim=1)
            ids.append(found.indices)
            best.append(found.values)
    shape = (prompts, length, kept)
    return Candidates(torch.cat(ids).view(shape), torch.cat(best).view(shape))
