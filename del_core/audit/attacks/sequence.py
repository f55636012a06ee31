"""The sequence attack: beam search with the language model as the prior of a whole prompt.

The noise of the positions is independent, so the posterior of the token sequence w_1 .. w_T is

    log P(w | K) = const + sum_t [ log P(K_t | w_t) + log p(w_t | w_1 .. w_{t-1}) ],
    p = lambda p_LM + (1 - lambda) p_unigram.

A beam keeps the best partial sequences of :mod:`candidates`. lambda = 0 is the MAP attack of a
single position. Under strong noise most words of the beam are wrong, and a language model that
conditions on them does worse than none. The attacker therefore fits lambda, and the way in which
guesses are read from the beam, to simulated noise on other text:

* filtered: the token of greatest weight over the beam, given the counts up to its own position;
* voted: the token of greatest weight among the sequences that survive to the end of the prompt.

Where the scores of the candidates already know the context (``combined``), the language model would
be counted twice; its ratio to the unigram prior is then raised to a power below 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from del_core.audit.attacks.base import Attack, Counts, Guesses, Ids, Knowledge, Target, register
from del_core.audit.attacks.candidates import Candidates, Scores, candidates, posterior_scores
from del_core.audit.leakage import LogPrior

SEQUENCE = "sequence"

_CONTEXT_WEIGHTS = (0.2, 0.5, 0.8, 0.95)
_NARROW = 4  # the least width at which settings are chosen
_BEAM_LOGITS = 1 << 25  # logits (rows of all beams, V) that a step may hold: 128 MiB in float32


@dataclass(frozen=True)
class SequenceConfig:
    """Settings of the search.

    Attributes:
        context_weight: lambda, at least 0 and below 1.
        power: exponent of the language model's ratio to the unigram prior, above 0, at most 1.
        voted: whether guesses are voted rather than filtered.
        beams: partial sequences kept for each prompt.
    """

    context_weight: float = 0.0
    power: float = 1.0
    voted: bool = False
    beams: int = 8

    def __post_init__(self) -> None:
        if not 0.0 <= self.context_weight < 1.0:
            raise ValueError(f"context_weight must be at least 0 and below 1, got {self.context_weight}")
        if not 0.0 < self.power <= 1.0:
            raise ValueError(f"power must be above 0 and at most 1, got {self.power}")
        if self.beams < 1:
            raise ValueError(f"beams must be at least 1, got {self.beams}")


GRID = tuple(SequenceConfig(context_weight=weight) for weight in _CONTEXT_WEIGHTS)
"""Settings that the sequence attack chooses from."""


@dataclass(frozen=True, eq=False)
class SequenceSearch:
    """The search under one language model; prompts begin with ``bos_token_id`` if there is one."""

    model: PreTrainedModel
    log_prior: LogPrior
    bos_token_id: int | None = None

    def fit(
        self,
        found: Candidates,
        token_ids: Ids,
        beams: int,
        progress: Callable[[float], None] = lambda share: None,
        *,
        grid: Sequence[SequenceConfig] = GRID,
    ) -> SequenceConfig:
        """Return the settings of ``grid`` and the reading that recover most of ``token_ids``.

        ``found`` are the candidates of ``token_ids`` (prompts, tokens). Lambda is 0, the best
        candidate of every position alone, unless another choice does better by more than the
        standard error of the difference: on few prompts the best of many choices is often best by
        chance.
        """
        alone = found.best() == token_ids
        best, best_gain = SequenceConfig(beams=beams), 0
        for number, config in enumerate(grid, 1):
            config = replace(config, beams=beams)
            for is_voted, guesses in enumerate(self._guesses(found, config)):
                right = guesses == token_ids
                gain = int(right.sum()) - int(alone.sum())
                if gain > best_gain and gain**2 > int(np.sum(right != alone)):
                    best, best_gain = replace(config, voted=bool(is_voted)), gain
            progress(number / len(grid))
        return best

    def tokens(self, found: Candidates, config: SequenceConfig) -> Ids:
        """Return guesses (prompts, tokens) among ``found``."""
        if not config.context_weight:  # prefixes do not matter
            return found.best()
        return self._guesses(found, config)[int(config.voted)]

    def _guesses(self, found: Candidates, config: SequenceConfig) -> tuple[Ids, Ids]:
        """Return filtered and voted guesses."""
        size = max(1, _BEAM_LOGITS // (config.beams * len(self.log_prior)))
        parts = [self._search(found[at : at + size], config) for at in range(0, len(found), size)]
        if not parts:
            return found.best(), found.best()
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    @torch.no_grad()
    def _search(self, found: Candidates, config: SequenceConfig) -> tuple[Ids, Ids]:
        model, bos, beams = self.model, self.bos_token_id, config.beams
        log_prior = torch.from_numpy(self.log_prior.astype(np.float32))
        prompts, length, weight = len(found), found.length, config.context_weight
        most = found.ids.shape[2]
        cache = DynamicCache(config=model.config)
        scores = torch.full((prompts, beams), -math.inf)
        scores[:, 0] = 0.0  # one empty sequence; the other beams must not duplicate it
        paths = torch.empty((prompts, beams, 0), dtype=torch.int64)
        filtered = torch.empty((prompts, length), dtype=torch.int64)

        def read(tokens: torch.Tensor) -> torch.Tensor:
            here: torch.Tensor = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[:, -1].float()
            return here

        logits = read(torch.full((prompts * beams, 1), bos)) if bos is not None else None
        for position in range(length):
            evidence, ids = found.scores[:, position], found.ids[:, position]
            if logits is None:  # only word frequencies are known of the first token
                total = scores.unsqueeze(2) + evidence.unsqueeze(1)
            else:
                wide = ids.unsqueeze(1).expand(-1, beams, -1)
                picked = logits.view(prompts, beams, -1).gather(2, wide)
                context = picked - torch.logsumexp(logits, dim=1).view(prompts, beams, 1)
                # The evidence contains the unigram prior, so the mixture enters as a ratio to it.
                ratio = (config.power * (context - log_prior[ids].unsqueeze(1))).exp()
                total = scores.unsqueeze(2) + (weight * ratio + (1 - weight)).log() + evidence.unsqueeze(1)
            marginal = torch.logsumexp(total, dim=1)
            filtered[:, position] = ids.gather(1, marginal.argmax(dim=1, keepdim=True)).squeeze(1)
            scores, chosen = total.view(prompts, -1).topk(beams, dim=1)
            parents = chosen // most
            tokens = ids.gather(1, chosen % most)
            paths = torch.cat([paths.gather(1, parents.unsqueeze(2).expand(-1, -1, position)), tokens.unsqueeze(2)], 2)
            if position + 1 < length:
                if position or bos is not None:
                    cache.batch_select_indices((torch.arange(prompts).unsqueeze(1) * beams + parents).view(-1))
                logits = read(tokens.view(-1, 1))
        return filtered.numpy(), _vote(paths, scores).numpy()


def _vote(paths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return for every position the token of greatest weight among the surviving sequences."""
    weights = torch.softmax(scores.double(), dim=1)
    votes = torch.zeros(paths.shape, dtype=torch.float64)
    for beam in range(paths.shape[1]):
        votes += weights[:, beam, None, None] * (paths == paths[:, beam : beam + 1])
    return paths.gather(1, votes.argmax(dim=1, keepdim=True)).squeeze(1)


class SequenceAttack(Attack):
    """Beam search over whole prompts, tuned on calibration prompts with simulated noise."""

    name = SEQUENCE
    label = "Language model over the whole prompt (beam search)"
    explanation = (
        "Searches whole prompts with a beam and the language model as prior. Other text with simulated noise tunes "
        "the weight of the model; where context does not help, the attack is `map`."
    )
    needs = "word frequencies, the language model, a few passages of text"
    knowledge = Knowledge.MODEL

    def run(self, target: Target) -> Guesses:
        """Fit the search to calibration prompts, then search the prompts."""
        scores = posterior_scores(target.likelihood, target.surface.log_prior)
        return beam_guesses(target, lambda counts: _considered(target, scores, counts), GRID)


def _considered(target: Target, scores: Scores, counts: Counts) -> Candidates:
    return candidates(scores, counts, target.config.attacker.candidates, len(target.surface.table))


def beam_guesses(target: Target, considered: Callable[[Counts], Candidates], grid: Sequence[SequenceConfig]) -> Guesses:
    """Return the guesses of a search that is as wide as the budget allows, with its settings.

    ``considered`` returns the candidates of counts (prompts, tokens, dim).
    """
    windows = target.tuning
    search = SequenceSearch(target.lm.model, target.surface.log_prior, target.bos_token_id)
    budget, each, attacked = target.config.attacker, 2.0 * target.parameters, target.counts[..., 0].size

    def fitted(beams: int) -> int:
        """Return the width at which settings are chosen: half, since narrow beams choose others.

        The wider a beam, the more it gains from the language model's weight.
        """
        return min(beams, max(_NARROW, beams // 2))

    beams = budget.width(lambda beams: each * (beams * attacked + fitted(beams) * len(grid) * windows.size))
    tried, found = considered(target.release(windows, 1)), considered(target.counts)
    settings = replace(search.fit(tried, windows, fitted(beams), target.progress, grid=grid), beams=beams)
    power = {} if all(one.power == 1.0 for one in grid) else {"power": settings.power}
    return Guesses(
        search.tokens(found, settings),
        parameters=target.parameters,
        settings={
            "beams": settings.beams,
            "candidates": found.ids.shape[2],
            "candidates_hold": round(tried.covered(windows), 4),
            "context_weight": settings.context_weight,
            **power,
            "reading": "voted" if settings.voted else "filtered",
        },
    )


register(SequenceAttack())
