"""Evaluation of a bundle's variants on a text, with the sampler and decoder that are shipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from del_core.audit.corpus import rouge_l
from del_core.audit.records import OMITTED
from del_core.audit.similarity import SentenceSimilarity
from del_core.bundle import CHAT_TASK, Bundle
from del_core.evaluation.bootstrap import (
    Interval,
    gap_closed,
    mean_interval,
    paired_interval,
    perplexity_interval,
    ratio_interval,
)
from del_core.evaluation.measure import Measured, Passages, coherence, decode_texts, measure
from del_core.evaluation.view import ClearPrompt, CountsView, NoPrompt, ServerView
from del_core.lm.model import BaseLM
from del_core.lm.progress import UNOBSERVED, Observer
from del_core.lm.text import TextError, TokenWindows, tokenize
from del_core.training.control import CLEAR, KINDS, NOTHING, Control
from del_core.training.sources import end_token


class BundleView(CountsView):
    """One variant of a bundle as it is served, with its soft prompt or, for comparison, without."""

    def __init__(self, bundle: Bundle, variant: str, *, soft_prompt: bool = True) -> None:
        super().__init__(variant, bundle.mechanism(variant), bundle.client.table_of(variant))
        self._decoder = bundle.build_decoder(variant)
        self.soft_prompt = torch.from_numpy(bundle.soft_prompt(variant)) if soft_prompt else None
        self.adapter = bundle.adapter(variant)

    @torch.no_grad()
    def embed(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return decoded rows of one noisy release of every prompt."""
        seed = int(torch.randint(2**31, (), generator=generator))
        counts = self.counts(tokens.flatten().numpy(), seed)
        prompts = counts.reshape(*tokens.shape, -1)
        rows = np.stack([self._decoder.decode(prompt) for prompt in prompts])  # a decoder may read the whole prompt
        return torch.from_numpy(rows)


@dataclass(frozen=True)
class EvaluationSettings:
    """Sample sizes of an evaluation; ``written`` of the ``passages`` are also continued."""

    passages: int = 256
    written: int = 64
    prompt_tokens: int = 96
    continuation_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("passages", 2), ("written", 2), ("prompt_tokens", 1), ("continuation_tokens", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.written > self.passages:
            raise ValueError(f"written must be at most {self.passages}, the number of passages, got {self.written}")


@dataclass(frozen=True)
class EvaluationRow:
    """Figures of one view of the prompts, with 95 % intervals of a paired bootstrap over passages.

    Attributes:
        method: the clear prompt, no prompt, or a variant with or without its soft prompt.
        attack_success: share of tokens that the optimal guess of single tokens recovers.
        attack_bits: bits that it gains on the true token.
        ppl, ppl_ratio: perplexity of the true continuations, and over that of the clear prompt.
        coh, coh_lift: coherence of greedy texts; None without a sentence encoder.
        rouge_l: overlap of greedy texts with those from the clear prompt.
        soft_prompt_ratio: perplexity over that without the soft prompt: below 1, it helps.
        gap_closed: share of the way from the trained control that says nothing, 0, to the trained
            control with the clear prompt, 1, in perplexity.
    """

    method: str
    passages: int
    bits_per_token: float
    attack_success: Interval
    attack_bits: float
    ppl: Interval
    ppl_ratio: Interval
    coh: Interval | None
    coh_lift: Interval | None
    rouge_l: Interval
    soft_prompt_ratio: Interval | None = field(default=None, metadata=OMITTED)
    without_soft_prompt: bool = field(default=False, metadata=OMITTED)
    gap_closed: Interval | None = field(default=None, metadata=OMITTED)


def evaluate_bundle(
    bundle: Bundle,
    lm: BaseLM,
    text: str,
    settings: EvaluationSettings | None = None,
    *,
    variants: Sequence[str] = (),
    controls: Sequence[Control] = (),
    observer: Observer = UNOBSERVED,
) -> list[EvaluationRow]:
    """Evaluate the clear prompt, no prompt, and every variant with and without its soft prompt.

    Args:
        text: text on which neither model nor bundle was trained.
        variants: names; by default all of the bundle that are not for chat.
        controls: soft prompts, and adapters, that were trained like those of the variants. With
            both kinds, every variant's share of the gap between them is measured.
        observer: hears of every view, and of the share of all views that is done.

    Raises:
        BundleError: ``bundle`` was made for another model or has no such variant.
        TextError: ``text`` is too short for two passages.
    """
    settings = settings or EvaluationSettings()
    bundle.check_model(lm.checksum)
    tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
    tokens = tokenize(tokenizer, [text])
    length = settings.prompt_tokens + settings.continuation_tokens
    count = min(settings.passages, len(tokens) // length)
    if count < 2:
        raise TextError(f"text: {len(tokens)} tokens; two passages of {length} tokens are needed at least")
    windows, written = TokenWindows(tokens, length, seed=0).first(count), min(settings.written, count)
    passages = Passages(windows, settings.prompt_tokens, written)
    true_texts = decode_texts(tokenizer, windows[:written, settings.prompt_tokens :])
    similarity, log_prior = SentenceSimilarity.installed(), bundle.log_prior
    names = variants or [name for name, variant in bundle.variants.items() if variant.task != CHAT_TASK]
    prompted = [name for name in names if bundle.client.variant(name).soft_prompt_length]
    has_nothing = lm.bos_token_id is not None or bool(lm.end_tokens)
    done, views = 0, 1 + has_nothing + len(controls) + len(names) + len(prompted)

    def measured(method: str, view: ServerView) -> Measured:
        nonlocal done
        observer.step(method, done, views)
        done += 1
        return measure(lm, view, tokenizer, passages, log_prior, settings.seed)

    def row(method: str, found: Measured, **more: Any) -> EvaluationRow:
        rate = found.attack.rate
        similar = None if similarity is None else coherence(similarity, found.written, true_texts)
        return EvaluationRow(
            method=method,
            passages=len(found.nll),
            bits_per_token=found.bits_per_token,
            attack_success=Interval(rate.success, rate.low, rate.high),
            attack_bits=round(found.attack.bits, 3),
            ppl=perplexity_interval(found.nll),
            ppl_ratio=ratio_interval(found.nll, clear.nll),
            coh=None if similar is None else mean_interval(similar.coh),
            coh_lift=None if similar is None else mean_interval(similar.lift),
            rouge_l=mean_interval([rouge_l(*pair) for pair in zip(clear.written, found.written, strict=True)]),
            **more,
        )

    clear = measured("clear prompt", ClearPrompt(lm.embeddings))
    rows = [row("clear prompt", clear)]
    if has_nothing:
        nothing = NoPrompt(lm.embeddings, lm.end_tokens[0] if lm.bos_token_id is None else None)
        rows.append(row("no prompt", measured("no prompt", nothing)))
    nll = {}
    for control in controls:
        method, view = _control(control, lm)
        found = measured(method, view)
        nll[control.result.kind] = found.nll
        rows.append(row(method, found))

    def gap(found: Measured) -> dict[str, Interval]:
        if set(nll) != set(KINDS):
            return {}
        return {"gap_closed": paired_interval(gap_closed, found.nll, nll[NOTHING], nll[CLEAR])}

    for name in names:
        served = measured(name, BundleView(bundle, name))
        if name not in prompted:
            rows.append(row(name, served, **gap(served)))
            continue
        left_out = f"{name}, soft prompt left out"
        bare = measured(left_out, BundleView(bundle, name, soft_prompt=False))
        rows.append(row(name, served, soft_prompt_ratio=ratio_interval(served.nll, bare.nll), **gap(served)))
        rows.append(row(left_out, bare, without_soft_prompt=True))
    return rows


def _control(control: Control, lm: BaseLM) -> tuple[str, ServerView]:
    clear = control.result.kind == CLEAR
    view: ClearPrompt | NoPrompt = ClearPrompt(lm.embeddings) if clear else NoPrompt(lm.embeddings, end_token(lm))
    view.soft_prompt, view.adapter = control.soft_prompt, control.adapter
    return control.method, view
