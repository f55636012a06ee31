"""Measurements of one view on passages: likelihood of the true continuation, text, attack.

The view embeds the prompt only; what precedes it is added as in serving. Tokens of the
continuation are clean, as if the server wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.view import Recovery, ServerView, whole_prompt
from del_core.lm.adapter import adapted
from del_core.lm.model import BaseLM
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import continuation_nll

_BATCH = 32


@dataclass(frozen=True, eq=False)
class Passages:
    """Token ids (passages, prompt + continuation tokens); the first ``written`` are continued."""

    windows: torch.Tensor
    prompt_tokens: int
    written: int


@dataclass(frozen=True, eq=False)
class Measured:
    """Values of one view.

    Attributes:
        nll: negative log-likelihood of every passage's true continuation, nats per token.
        written: greedy text after each prompt that is continued.
        attack: recovery of the prompts' tokens by the optimal guesser of single tokens.
    """

    bits_per_token: float
    nll: npt.NDArray[np.float64]
    written: Sequence[str]
    attack: Recovery


def measure(
    lm: BaseLM,
    view: ServerView,
    tokenizer: Tokenizer,
    passages: Passages,
    log_prior: npt.NDArray[np.floating],
    seed: int,
) -> Measured:
    """Measure likelihood, written text and attack of ``view``.

    No stage trains or calibrates with the noise of ``seed``.
    """
    windows, prompts = passages.windows, passages.windows[:, : passages.prompt_tokens]
    length = windows.shape[1] - passages.prompt_tokens
    with adapted(lm.model, view.adapter):
        nll = passage_nll(lm, view, windows, passages.prompt_tokens, seed)
        written = written_texts(lm, view, tokenizer, prompts[: passages.written], length, seed)
    return Measured(
        bits_per_token=view.bits_per_token,
        nll=nll,
        written=written,
        attack=view.attack(prompts.flatten().cpu().numpy(), log_prior, seed),
    )


@torch.no_grad()
def passage_nll(
    lm: BaseLM, view: ServerView, windows: torch.Tensor, prompt_tokens: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return the mean negative log-likelihood of every passage's continuation, in nats per token.

    Args:
        windows: token ids (passages, prompt tokens + continuation tokens).
        seed: seed of the noise, which depends on nothing else but the position of the passage.
    """
    parts = []
    for index, part in enumerate(windows.split(_BATCH)):
        prompt = whole_prompt(lm, view, part[:, :prompt_tokens], step_generator(seed, index, part.device))
        parts.append(continuation_nll(lm.model, prompt, part[:, prompt_tokens:]))
    return torch.cat(parts).double().cpu().numpy()


@torch.no_grad()
def continuations(
    model: PreTrainedModel,
    embedded: torch.Tensor,
    tokens: int,
    choose: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits.argmax(-1),
) -> torch.Tensor:
    """Generate ``tokens`` tokens after each prompt (N, T, b): ids (N, tokens).

    ``choose`` returns the next tokens (N,) from logits (N, V).
    """
    written: list[torch.Tensor] = []
    result = model(inputs_embeds=embedded.to(model.dtype), use_cache=True, logits_to_keep=1)
    while True:
        written.append(choose(result.logits[:, -1]))
        if len(written) == tokens:
            return torch.stack(written, dim=1)
        result = model(input_ids=written[-1][:, None], past_key_values=result.past_key_values, use_cache=True)


def decode_texts(tokenizer: Tokenizer, ids: torch.Tensor) -> list[str]:
    """Decode every row of ``ids`` (N, tokens)."""
    return list(tokenizer.decode_batch(ids.tolist()))


def written_texts(
    lm: BaseLM, view: ServerView, tokenizer: Tokenizer, prompts: torch.Tensor, tokens: int, seed: int
) -> list[str]:
    """Return the greedy text of ``tokens`` tokens after each of ``prompts``."""
    texts: list[str] = []
    for index, part in enumerate(prompts.split(_BATCH) if len(prompts) else ()):
        embedded = whole_prompt(lm, view, part, step_generator(seed, index, part.device))
        texts += decode_texts(tokenizer, continuations(lm.model, embedded, tokens))
    return texts


@dataclass(frozen=True, eq=False)
class Coherence:
    """Similarity of written texts to the true continuations, one value per passage.

    Attributes:
        coh: cosine of the sentence embeddings of written and true continuation (COH), in -1..1.
        lift: ``coh`` minus the mean cosine with the true continuations of the other passages. Text
            that is independent of its prompt has a mean lift of 0, however high its COH.
    """

    coh: npt.NDArray[np.float64]
    lift: npt.NDArray[np.float64]


def coherence(similarity: SentenceSimilarity, written: Sequence[str], true: Sequence[str]) -> Coherence:
    """Return the coherence of one text for each of at least two passages, or raise ValueError.

    ``similarity`` caches embeddings, so use the same object for all methods.
    """
    if len(true) < 2 or len(written) != len(true):
        raise ValueError(
            f"written must hold one text for each of 2 or more passages, got {len(written)} for {len(true)}"
        )
    cosines = similarity.embeddings(written) @ similarity.embeddings(true).T
    own = np.diagonal(cosines).copy()
    return Coherence(coh=own, lift=own - (cosines.sum(axis=1) - own) / (len(true) - 1))
