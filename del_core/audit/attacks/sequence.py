"""The sequence attack: beam search with the language model as the prior of a whole prompt.

The noise of the positions is independent, so the posterior of the token sequence w_1 .. w_T is

    log P(w | K) = const + sum_t [ log P(K_t | w_t) + log p(w_t | w_1 .. w_{t-1}) ],
    p = lambda p_LM + (1 - lambda) p_unigram.

A beam keeps the best partial sequences. lambda = 0 is the MAP attack of a single position. Under
strong noise most words of the beam are wrong, and a language model that conditions on them does
worse than none. The attacker therefore fits lambda, and the way in which guesses are read from the
beam, to simulated noise on other text:

* filtered: the token of greatest weight over the beam, given the counts up to its own position;
* voted: the token of greatest weight among the sequences that survive to the end of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from del_core.audit.attacks.base import Attack, Counts, Guesses, Ids, Target, register
from del_core.audit.leakage import LogPrior
from del_core.mechanism.base import Likelihood

SEQUENCE = "sequence"

_CONTEXT_WEIGHTS = (0.3, 0.6, 0.9, 0.98)


@dataclass(frozen=True)
class SequenceConfig:
    """Settings of the search.

    Attributes:
        context_weight: lambda, at least 0 and below 1.
        voted: whether guesses are voted rather than filtered.
        beams: partial sequences kept for each prompt.
        candidates: tokens considered at a position: those of greatest unigram posterior.
        batch: prompts searched at once.
    """

    context_weight: float = 0.0
    voted: bool = False
    beams: int = 8
    candidates: int = 512
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.context_weight < 1.0:
            raise ValueError(f"context_weight must be at least 0 and below 1, got {self.context_weight}")
        if not 1 <= self.beams <= self.candidates:
            raise ValueError(f"beams must be from 1 to {self.candidates}, the number of candidates, got {self.beams}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, eq=False)
class SequenceSearch:
    """The search under one language model; prompts begin with ``bos_token_id`` if there is one."""

    model: PreTrainedModel
    likelihood: Likelihood
    log_prior: LogPrior
    bos_token_id: int | None = None

    def fit(
        self,
        counts: Counts,
        token_ids: Ids,
        base: SequenceConfig,
        progress: Callable[[float], None] = lambda share: None,
    ) -> SequenceConfig:
        """Return ``base`` with the lambda and the reading that recover most of ``token_ids``.

        ``counts`` are those of ``token_ids`` (prompts, tokens). Lambda stays 0, the MAP attack,
        unless another choice does better by more than the standard error of the difference: on few
        prompts the best of many choices is often best by chance.
        """
        unaided = replace(base, context_weight=0.0, voted=False)
        alone = self.tokens(counts, unaided) == token_ids
        best, best_gain = unaided, 0
        for number, weight in enumerate(_CONTEXT_WEIGHTS, 1):
            config = replace(base, context_weight=weight)
            for is_voted, guesses in enumerate(self._guesses(counts, config)):
                right = guesses == token_ids
                gain = int(right.sum()) - int(alone.sum())
                if gain > best_gain and gain**2 > int(np.sum(right != alone)):
                    best, best_gain = replace(config, voted=bool(is_voted)), gain
            progress(number / len(_CONTEXT_WEIGHTS))
        return best

    def tokens(self, counts: Counts, config: SequenceConfig) -> Ids:
        """Return guesses (prompts, tokens) for ``counts`` (prompts, tokens, dim)."""
        return self._guesses(counts, config)[int(config.voted)]

    def _guesses(self, counts: Counts, config: SequenceConfig) -> tuple[Ids, Ids]:
        """Return filtered and voted guesses."""
        if counts.ndim != 3 or counts.shape[1] < 1:
            raise ValueError(f"counts must have shape (prompts, tokens, dim) with tokens >= 1, got {counts.shape}")
        parts = [self._search(counts[at : at + config.batch], config) for at in range(0, len(counts), config.batch)]
        if not parts:
            return np.empty(counts.shape[:2], np.int64), np.empty(counts.shape[:2], np.int64)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    @torch.no_grad()
    def _search(self, counts: Counts, config: SequenceConfig) -> tuple[Ids, Ids]:
        model, bos = self.model, self.bos_token_id
        prior = torch.from_numpy(np.exp(self.log_prior.astype(np.float64)).astype(np.float32))
        (prompts, length), weight = counts.shape[:2], config.context_weight
        candidates = min(config.candidates, len(prior))
        beams = config.beams if weight else 1  # without context prefixes do not matter
        cache = DynamicCache(config=model.config)
        scores = torch.full((prompts, beams), -math.inf)
        scores[:, 0] = 0.0  # one empty sequence; the other beams must not duplicate it
        paths = torch.empty((prompts, beams, 0), dtype=torch.int64)
        filtered = torch.empty((prompts, length), dtype=torch.int64)

        def read(tokens: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[:, -1].float()
            return found

        logits = read(torch.full((prompts * beams, 1), bos)) if weight and bos is not None else None
        for position in range(length):
            posterior = torch.from_numpy(self.likelihood(counts[:, position])) + prior.log()
            evidence, ids = posterior.topk(candidates, dim=1)
            if logits is None:  # only word frequencies are known of the first token
                total = scores.unsqueeze(2) + evidence.unsqueeze(1)
            else:
                wide = ids.unsqueeze(1).expand(-1, beams, -1)
                picked = logits.view(prompts, beams, -1).gather(2, wide)
                context = (picked - torch.logsumexp(logits, dim=1).view(prompts, beams, 1)).exp()
                # The evidence contains the unigram prior, so the mixture enters as a ratio to it.
                ratio = (weight * context / prior[ids].unsqueeze(1) + (1 - weight)).log()
                total = scores.unsqueeze(2) + ratio + evidence.unsqueeze(1)
            marginal = torch.logsumexp(total, dim=1)
            filtered[:, position] = ids.gather(1, marginal.argmax(dim=1, keepdim=True)).squeeze(1)
            scores, chosen = total.view(prompts, -1).topk(beams, dim=1)
            parents = chosen // candidates
            tokens = ids.gather(1, chosen % candidates)
            kept = paths.gather(1, parents.unsqueeze(2).expand(-1, -1, position))
            paths = torch.cat([kept, tokens.unsqueeze(2)], dim=2)
            if weight and position + 1 < length:
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
    """Beam search over whole prompts, tuned on validation prompts with simulated noise."""

    name = SEQUENCE
    label = "Language model over the whole prompt (beam search)"
    explanation = (
        "Searches whole prompts with a beam and the language model as prior. Other text with simulated noise tunes "
        "the weight of the model; where context does not help, the attack is `map`."
    )
    needs = "word frequencies, the language model, text of the same kind"

    def run(self, target: Target) -> Guesses:
        """Fit the search to validation prompts, then search the prompts."""
        model, windows = target.lm.model, target.validation
        windows = windows[np.linspace(0, len(windows) - 1, min(target.config.tuning, len(windows))).astype(np.int64)]
        search = SequenceSearch(model, target.likelihood, target.surface.log_prior, target.bos_token_id)
        base = SequenceConfig(beams=target.config.beams)
        settings = search.fit(target.release(windows, 1), windows, base, target.progress)
        return Guesses(
            search.tokens(target.counts, settings),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            settings={
                "beams": settings.beams,
                "candidates": settings.candidates,
                "context_weight": settings.context_weight,
                "reading": "voted" if settings.voted else "filtered",
            },
        )


register(SequenceAttack())
