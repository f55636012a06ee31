"""A bundle's variants on a user's own text: what the LM writes behind them, and what a guesser reads out of them.

The counts are drawn by the sampler that clients ship and decoded by the decoder that servers run, with a reproducible
stream in place of the system's CSPRNG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from del_core.audit.similarity import SentenceSimilarity
from del_core.bundle import Bundle, BundleError
from del_core.decoders.decoding import build_decoder
from del_core.evaluation.bootstrap import mean_interval, perplexity_interval, ratio_interval
from del_core.evaluation.measure import Measured, Passages, measure
from del_core.evaluation.view import ClearPrompt, CountsView, NoPrompt, PromptView, in_front
from del_core.lm.model import BaseLM
from del_core.lm.text import TextError, TokenWindows, tokenize
from del_core.mechanism import require_binomial

__all__ = ["BundleView", "EvaluationSettings", "evaluate_bundle"]


class BundleView(CountsView):
    """One variant of a bundle as it is served, with its soft prompt or, for comparison, without."""

    def __init__(self, bundle: Bundle, variant: str, *, soft_prompt: bool = True) -> None:
        super().__init__(variant, require_binomial(bundle.mechanism(variant), "an evaluation"), bundle.client.table)
        self._decoder = build_decoder(bundle, variant)
        self._soft_prompt = torch.from_numpy(bundle.soft_prompt(variant)) if soft_prompt else None

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Decoded rows of one noisy release of every prompt, behind the soft prompt."""
        seed = int(torch.randint(2**31, (), generator=generator))
        codes = self.counts(tokens.flatten().numpy(), seed)
        prompts = codes.reshape(*tokens.shape, -1)  # each is decoded alone: a decoder may read a prompt's context
        rows = np.stack([self._decoder.decode(prompt) for prompt in prompts])
        return in_front(self._soft_prompt, torch.from_numpy(rows))


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is read: ``passages``, of which ``written`` are also continued, and the noise's ``seed``."""

    passages: int = 256
    written: int = 64
    prompt_tokens: int = 96
    continuation_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("passages", 2), ("written", 2), ("prompt_tokens", 1), ("continuation_tokens", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is less than {least}")
        if self.written > self.passages:
            raise ValueError(f"written: {self.written} is more than the {self.passages} passages")


def evaluate_bundle(
    bundle: Bundle,
    lm: BaseLM,
    text: str,
    settings: EvaluationSettings | None = None,
    *,
    variants: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """A row for the clear prompt, for no prompt at all, and for every variant with and without its soft prompt.

    ``ppl_ratio`` is the perplexity over the clear prompt's, on the same passages; ``soft_prompt_ratio`` over the same
    variant's without its soft prompt (below 1: it helps); rows of the latter have ``without_soft_prompt``. ``coh`` and
    ``coh_lift`` are the ``Coherence`` of greedy texts. Figures are [value, low, high] of a 95 % paired bootstrap.

    Args:
        text: that neither LM nor bundle was trained on.
        variants: their names; all of the bundle's by default.
        report: gets a line for every view that is begun.

    Raises:
        BundleError: if ``bundle`` was made for another LM or has no such variant.
        TextError: if ``text`` is too short for two passages.
    """
    settings = settings or EvaluationSettings()
    if bundle.manifest.base_model.sha256 != lm.checksum:
        raise BundleError(
            "manifest.json",
            f"was made for a model with checksum {bundle.manifest.base_model.sha256}, not {lm.checksum}",
        )
    tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
    tokens = tokenize(tokenizer, [text])
    length = settings.prompt_tokens + settings.continuation_tokens
    count = min(settings.passages, len(tokens) // length)
    if count < 2:
        raise TextError(f"text: {len(tokens)} tokens; two passages of {length} tokens are needed at least")
    report("clear prompt")
    windows = TokenWindows(tokens, length, seed=0).first(count)
    passages = Passages.of(lm.model, tokenizer, windows, settings.prompt_tokens, min(settings.written, count))
    similarity, log_prior = SentenceSimilarity.installed(), bundle.log_prior

    def measured(view: PromptView) -> Measured:
        return measure(lm.model, view, tokenizer, passages, similarity, log_prior, settings.seed)

    clear = measured(ClearPrompt(lm.embeddings))
    rows = [_row("clear prompt", ClearPrompt(lm.embeddings), clear, clear)]
    end = lm.model.config.eos_token_id
    if isinstance(end, int):
        report("no prompt")
        nothing = NoPrompt(lm.embeddings, end)
        rows.append(_row("no prompt", nothing, measured(nothing), clear))
    for name in variants or bundle.variants:
        variant = bundle.client.variant(name)
        report(name)
        view = BundleView(bundle, name)
        found = measured(view)
        row = _row(name, view, found, clear)
        if not variant.soft_prompt_length:
            rows.append(row)
            continue
        report(f"{name}, soft prompt left out")
        bare = BundleView(bundle, name, soft_prompt=False)
        without = measured(bare)
        row["soft_prompt_ratio"] = ratio_interval(found.nll, without.nll).rounded()
        left_out = _row(f"{name}, soft prompt left out", bare, without, clear) | {"without_soft_prompt": True}
        rows += [row, left_out]
    return rows


def _row(method: str, view: PromptView, found: Measured, clear: Measured) -> dict[str, Any]:
    figures: Mapping[str, Any] = {
        "ppl": perplexity_interval(found.nll).rounded(),
        "ppl_ratio": ratio_interval(found.nll, clear.nll).rounded(),
        "coh": found.greedy and mean_interval(found.greedy.coh).rounded(),
        "coh_lift": found.greedy and mean_interval(found.greedy.lift).rounded(),
        "rouge_l": mean_interval(found.rouge_l).rounded(),
    }
    rate = found.attack.rate
    return {
        "method": method,
        "passages": len(found.nll),
        "bits_per_token": view.bits_per_token,
        "attack_success": [round(value, 4) for value in (rate.success, rate.low, rate.high)],
        "attack_bits": round(found.attack.bits, 3),
        **figures,
    }
