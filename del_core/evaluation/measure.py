"""All that is measured of one view on one set of passages, by the same code for every method."""

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
from del_core.evaluation.view import ClearPrompt, PromptView, TokenAttack

__all__ = ["Measured", "Passages", "Written", "coherence_of", "measure"]


@dataclass(frozen=True, eq=False)
class Passages:
    """What is read, and what the LM writes from it in the clear, which ROUGE-L compares with.

    Attributes:
        windows: token ids (passages, prompt tokens + continuation tokens).
        prompt_tokens: private tokens of each.
        from_clear: the LM's own continuations of the first passages; as many are written under every view, be it none.
    """

    windows: torch.Tensor
    prompt_tokens: int
    from_clear: Sequence[str]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        windows: torch.Tensor,
        prompt_tokens: int,
        written: int,
        *,
        bf16: bool = False,
    ) -> Passages:
        """Passages of which ``written`` are also continued."""
        clear = ClearPrompt(model.get_input_embeddings().weight)
        prompts = windows[:written, :prompt_tokens]
        length = windows.shape[1] - prompt_tokens
        return cls(windows, prompt_tokens, written_texts(model, clear, tokenizer, prompts, length, 0, bf16=bf16))


@dataclass(frozen=True)
class Written:
    """Texts that the LM wrote: ``greedy``, one a passage; ``sampled``, several, those of a passage together."""

    greedy: Sequence[str]
    sampled: Sequence[str]


@dataclass(frozen=True, eq=False)
class Measured:
    """One value for each passage, and what was written.

    Attributes:
        nll: of the true continuation, nats a token.
        written: after the passages that ``Passages.from_clear`` has texts of.
        greedy: coherence of the greedy text; None if no sentence encoder is installed.
        sampled: coherence of several sampled texts a passage, averaged, where such were asked for.
        rouge_l: ROUGE-L F1 over lower-case words of the greedy text against what the same LM writes from the clear
            prompt. Coherence alone rewards fluent text about something else.
        attack: what the view gives away of the prompts' tokens to the optimal guesser of single tokens.
    """

    nll: npt.NDArray[np.float64]
    written: Written
    greedy: Coherence | None
    sampled: Coherence | None
    rouge_l: npt.NDArray[np.float64]
    attack: TokenAttack


def coherence_of(
    texts: Written, passages: Passages, tokenizer: Tokenizer, similarity: SentenceSimilarity
) -> tuple[Coherence | None, Coherence | None]:
    """Of the greedy and of the sampled ones; None where there are none."""
    true = decode_texts(tokenizer, passages.windows[: len(passages.from_clear), passages.prompt_tokens :])
    greedy, sampled = (coherence(similarity, some, true) if some else None for some in (texts.greedy, texts.sampled))
    return greedy, sampled


def measure(
    model: PreTrainedModel,
    view: PromptView,
    tokenizer: Tokenizer,
    passages: Passages,
    similarity: SentenceSimilarity | None,
    log_prior: npt.NDArray[np.floating],
    seed: int,
    *,
    samples: int = 0,
    bf16: bool = False,
) -> Measured:
    """Likelihood, written text and attack of ``view``.

    Args:
        model: the server's LM.
        similarity: without one there is no COH; ``coherence_of`` finds it later, from what was written.
        log_prior: of the attacker, (V,).
        seed: of the noise, which no stage trains or calibrates with.
        samples: texts that are drawn for each passage, beside the greedy one.
        bf16: matrix products in bfloat16, for processors that have them.
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
        nll=passage_nll(model, view, windows, prompt_tokens, seed, bf16=bf16),
        written=texts,
        greedy=greedy,
        sampled=sampled,
        rouge_l=np.array([rouge_l(clear, text) for clear, text in pairs]),
        attack=view.attack(prompts.flatten().cpu().numpy(), log_prior, seed),
    )
