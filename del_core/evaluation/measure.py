"""Measurements of one view on one set of passages, by the same code for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from del_core.audit.corpus import rouge_l
from del_core.audit.similarity import SentenceSimilarity
from del_core.evaluation.generation import Coherence, coherence, decode_texts, passage_nll, written_texts
from del_core.evaluation.view import ClearPrompt, Recovery, ServerView


@dataclass(frozen=True, eq=False)
class Passages:
    """Passages (passages, prompt tokens + continuation tokens), and texts to compare with.

    ``from_clear`` are the model's continuations of the first clear prompts. The same number of
    continuations is generated for every view, which may be none.
    """

    windows: torch.Tensor
    prompt_tokens: int
    from_clear: Sequence[str]

    @classmethod
    def from_windows(
        cls,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        windows: torch.Tensor,
        prompt_tokens: int,
        written: int,
        *,
        bf16: bool = False,
    ) -> Passages:
        """Return passages of which the first ``written`` are continued."""
        clear = ClearPrompt(model.get_input_embeddings().weight)
        prompts = windows[:written, :prompt_tokens]
        length = windows.shape[1] - prompt_tokens
        return cls(windows, prompt_tokens, written_texts(model, clear, tokenizer, prompts, length, 0, bf16=bf16))


@dataclass(frozen=True)
class Written:
    """Written texts: one greedy text per passage, and several sampled ones in sequence."""

    greedy: Sequence[str]
    sampled: Sequence[str]


@dataclass(frozen=True, eq=False)
class Measured:
    """One value per passage, and the written texts.

    Attributes:
        nll: negative log-likelihood of the true continuation, nats per token.
        greedy, sampled: coherence of the texts; None without texts or without a sentence encoder.
        rouge_l: ROUGE-L F1 of the greedy text against the text from the clear prompt. Coherence
            alone rewards fluent text about another subject.
        attack: recovery of the prompts' tokens by the optimal guesser of single tokens.
    """

    bits_per_token: float
    nll: npt.NDArray[np.float64]
    written: Written
    greedy: Coherence | None
    sampled: Coherence | None
    rouge_l: npt.NDArray[np.float64]
    attack: Recovery


def coherence_of(
    texts: Written, passages: Passages, tokenizer: Tokenizer, similarity: SentenceSimilarity
) -> tuple[Coherence | None, Coherence | None]:
    """Return the coherence of greedy and of sampled texts; None where there are no texts."""
    true = decode_texts(tokenizer, passages.windows[: len(passages.from_clear), passages.prompt_tokens :])
    greedy, sampled = (coherence(similarity, some, true) if some else None for some in (texts.greedy, texts.sampled))
    return greedy, sampled


def measure(
    model: PreTrainedModel,
    view: ServerView,
    tokenizer: Tokenizer,
    passages: Passages,
    similarity: SentenceSimilarity | None,
    log_prior: npt.NDArray[np.floating],
    seed: int,
    *,
    samples: int = 0,
    bf16: bool = False,
) -> Measured:
    """Measure likelihood, written text and attack of ``view``.

    Args:
        similarity: sentence encoder; without one, ``coherence_of`` can score the texts later.
        seed: seed of the noise; no stage trains or calibrates with it.
        samples: sampled texts per passage, beside the greedy one.
        bf16: whether matrix products are computed in bfloat16.
    """
    windows, prompt_tokens, written = passages.windows, passages.prompt_tokens, len(passages.from_clear)
    prompts = windows[:, :prompt_tokens]
    length = windows.shape[1] - prompt_tokens

    def write(copies: int) -> list[str]:
        return written_texts(model, view, tokenizer, prompts[:written], length, seed, samples=copies, bf16=bf16)

    texts = Written(write(0) if written else [], write(samples) if written and samples else [])
    greedy, sampled = coherence_of(texts, passages, tokenizer, similarity) if similarity else (None, None)
    pairs = zip(passages.from_clear, texts.greedy, strict=True)
    return Measured(
        bits_per_token=view.bits_per_token,
        nll=passage_nll(model, view, windows, prompt_tokens, seed, bf16=bf16),
        written=texts,
        greedy=greedy,
        sampled=sampled,
        rouge_l=np.array([rouge_l(clear, text) for clear, text in pairs]),
        attack=view.attack(prompts.flatten().cpu().numpy(), log_prior, seed),
    )
