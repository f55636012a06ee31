"""Evaluation of variants for chat: agreement with the answers that the clear prompts lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from del_core.audit.corpus import rouge_l
from del_core.audit.records import OMITTED
from del_core.audit.similarity import SentenceSimilarity
from del_core.bundle import Bundle, for_chat
from del_core.evaluation.bootstrap import (
    Interval,
    gap_closed,
    mean_interval,
    paired_interval,
    perplexity_interval,
    ratio_interval,
)
from del_core.evaluation.bundle import BundleView
from del_core.evaluation.measure import coherence, continuations
from del_core.evaluation.view import NoPrompt, ServerView, in_front
from del_core.lm.adapter import adapted
from del_core.lm.model import BaseLM
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import IGNORED, targets_nll
from del_core.lm.progress import UNOBSERVED, Observer
from del_core.training.control import CLEAR, KINDS, NOTHING, Control
from del_core.training.examples import Conversation


@dataclass(frozen=True)
class ChatRow:
    """Agreement of one view's answers with the given ones; 95 % intervals over conversations.

    Attributes:
        method: a variant, with or without its soft prompt, or nothing in place of private spans.
        ppl: perplexity of the given answers, which the model wrote itself to the clear prompts.
        ppl_ratio: that perplexity over the one behind the clear prompt.
        similarity: cosine of the sentence embeddings of written and given answer; None without a
            sentence encoder.
        similarity_lift: ``similarity`` minus the mean cosine with the other conversations' answers.
        rouge_l: overlap of the words of written and given answer.
        soft_prompt_ratio: perplexity over that without the soft prompt.
        answers: the written answers, one for each conversation.
        gap_closed: share of the way from the trained control that says nothing, 0, to the trained
            control with the clear prompt, 1, in perplexity.
    """

    method: str
    conversations: int
    ppl: Interval
    ppl_ratio: Interval
    similarity: Interval | None = None
    similarity_lift: Interval | None = None
    rouge_l: Interval | None = field(default=None, metadata=OMITTED)
    soft_prompt_ratio: Interval | None = field(default=None, metadata=OMITTED)
    answers: tuple[str, ...] = field(default=(), metadata=OMITTED)
    gap_closed: Interval | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True)
class ChatResult:
    """The rows, with the private part of each prompt and the given answers."""

    private_texts: tuple[str, ...]
    given: tuple[str, ...]
    rows: tuple[ChatRow, ...]


def evaluate_chat(
    bundle: Bundle,
    lm: BaseLM,
    conversations: Sequence[Conversation],
    *,
    variants: Sequence[str] = (),
    controls: Sequence[Control] = (),
    seed: int = 0,
    observer: Observer = UNOBSERVED,
) -> ChatResult:
    """Evaluate variants for chat, by default all of the bundle, on conversations that none learned.

    With both kinds of ``controls``, every variant's share of the gap between them is measured.
    ``observer`` hears of every view, and of the share of all views that is done.

    Raises:
        BundleError: ``bundle`` was made for another model or has no such variant.
        ValueError: there are fewer than two conversations.
    """
    if len(conversations) < 2:
        raise ValueError(f"conversations must be 2 or more, got {len(conversations)}")
    bundle.check_model(lm.checksum)
    chosen = variants or [variant.name for variant in for_chat(bundle.variants.values())]
    tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
    similarity = SentenceSimilarity.installed()
    given = [tokenizer.decode(list(one.answer)) for one in conversations]
    views = 1 + bool(lm.end_tokens) + len(controls) + len(chosen)
    rows: list[ChatRow] = []

    def nll(prompts: Sequence[torch.Tensor]) -> npt.NDArray[np.float64]:
        return np.array([_answer_nll(lm, row, one) for row, one in zip(prompts, conversations, strict=True)])

    def read(view: ServerView | None) -> list[torch.Tensor]:
        return [_prompt(lm, one, view, seed, index) for index, one in enumerate(conversations)]

    def add(method: str, found: npt.NDArray[np.float64], **more: Any) -> None:
        ppl, ratio = perplexity_interval(found), ratio_interval(found, clear)
        rows.append(ChatRow(method, len(given), ppl, ratio, **more))

    observer.step("clear prompt", 0, views)
    clear = nll(read(None))
    add("clear prompt", clear)
    silent = NoPrompt(lm.embeddings, lm.end_tokens[0]) if lm.end_tokens else None
    if silent is not None:
        observer.step("nothing of the private spans", 1, views)
        add("no prompt", nll(read(silent)))
    bounds = {}
    for control in controls:
        kind = control.result.kind
        observer.step(control.method, len(rows), views)
        prompts = [in_front(control.soft_prompt, row[None])[0] for row in read(None if kind == CLEAR else silent)]
        with adapted(lm.model, control.adapter):
            bounds[kind] = nll(prompts)
        add(control.method, bounds[kind])
    for name in chosen:
        observer.step(name, len(rows), views)
        view = BundleView(bundle, name, soft_prompt=False)
        bare = read(view)
        soft_prompt = torch.from_numpy(bundle.soft_prompt(name))
        behind = [in_front(soft_prompt, row[None])[0] for row in bare]
        with adapted(lm.model, view.adapter):
            answers = [
                _written(lm, tokenizer, row, len(one.answer)) for row, one in zip(behind, conversations, strict=True)
            ]
            found, without = nll(behind), nll(bare)
        similar = None if similarity is None else coherence(similarity, answers, given)
        both = set(bounds) == set(KINDS)
        add(
            name,
            found,
            similarity=None if similar is None else mean_interval(similar.coh),
            similarity_lift=None if similar is None else mean_interval(similar.lift),
            rouge_l=mean_interval([rouge_l(*pair) for pair in zip(given, answers, strict=True)]),
            soft_prompt_ratio=ratio_interval(found, without),
            answers=tuple(answers),
            gap_closed=paired_interval(gap_closed, found, bounds[NOTHING], bounds[CLEAR]) if both else None,
        )
    private = tuple(
        tokenizer.decode([token for token, flag in zip(one.prompt, one.private, strict=True) if flag])
        for one in conversations
    )
    return ChatResult(private, tuple(given), tuple(rows))


@torch.no_grad()
def _prompt(lm: BaseLM, one: Conversation, view: ServerView | None, seed: int, index: int) -> torch.Tensor:
    """Return a prompt's rows (tokens, b); ``view`` reads each private span, None in the clear."""
    ids, layer = torch.tensor(one.prompt), lm.model.get_input_embeddings()
    if view is None:
        return layer(ids)
    parts, start = [], 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or one.private[place] != one.private[start]:
            span = ids[start:place]
            noise = step_generator(seed, index * 1000 + start, ids.device)
            parts.append(view.embed(span[None], noise)[0] if one.private[start] else layer(span))
            start = place
    return torch.cat(parts)


@torch.no_grad()
def _answer_nll(lm: BaseLM, rows: torch.Tensor, one: Conversation) -> float:
    answer = torch.tensor(one.answer)
    inputs = torch.cat([rows, lm.model.get_input_embeddings()(answer[:-1])])[None]
    targets = torch.nn.functional.pad(answer, (len(rows) - 1, 0), value=IGNORED)[None]
    return float(targets_nll(lm.model, inputs, targets))


def _written(lm: BaseLM, tokenizer: Tokenizer, rows: torch.Tensor, tokens: int) -> str:
    """Return the greedy answer up to the end of the turn, as long as the given one at most."""
    ids = continuations(lm.model, rows[None], tokens)[0].tolist()
    length = next((place for place, token in enumerate(ids) if token in lm.end_tokens), len(ids))
    return str(tokenizer.decode(ids[:length]))
