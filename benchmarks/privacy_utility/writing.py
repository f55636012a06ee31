"""Text beside the greedy one of an evaluation: sampled, and computed in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.measure import Coherence, coherence, continuations, decode_texts
from del_core.evaluation.view import ServerView, whole_prompt
from del_core.lm.model import BaseLM
from del_core.lm.noise import step_generator

__all__ = ["RoundedModel", "mean_coherence", "sampled", "sampled_texts"]

_BATCH = 32


class RoundedModel:
    """A model whose matrix products are computed in bfloat16."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __call__(self, **inputs: Any) -> Any:
        with torch.autocast(self._model.device.type, torch.bfloat16):
            return self._model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def sampled(
    model: PreTrainedModel, embedded: torch.Tensor, tokens: int, generator: torch.Generator, copies: int
) -> torch.Tensor:
    """Draw ``copies`` continuations of each prompt (N, T, b) in sequence: (N * copies, tokens).

    The Gumbel-max trick draws tokens of the model's distribution, so that views of one seed share
    random numbers.
    """

    def choose(logits: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        return (logits.float() - (-uniform.clamp_min(1e-30).log()).log()).argmax(-1)

    return continuations(model, embedded.repeat_interleave(copies, dim=0), tokens, choose)


def sampled_texts(
    lm: BaseLM,
    view: ServerView,
    tokenizer: Tokenizer,
    prompts: torch.Tensor,
    tokens: int,
    seed: int,
    copies: int,
) -> list[str]:
    """Return ``copies`` sampled texts for each of ``prompts``, in sequence, after one release."""
    texts: list[str] = []
    for index, part in enumerate(prompts.split(_BATCH)):
        embedded = whole_prompt(lm, view, part, step_generator(seed, index, part.device))
        chance = step_generator(seed + 1, index, embedded.device)
        texts += decode_texts(tokenizer, sampled(lm.model, embedded, tokens, chance, copies))
    return texts


def mean_coherence(similarity: SentenceSimilarity, written: Sequence[str], true: Sequence[str]) -> Coherence:
    """Return the coherence of ``written``, averaged over the texts of each passage, in sequence."""
    copies = len(written) // len(true)
    each = [coherence(similarity, written[copy::copies], true) for copy in range(copies)]
    return Coherence(*(np.mean([getattr(one, name) for one in each], axis=0) for name in ("coh", "lift")))
