"""Sources of examples for stage 2: windows of a text, conversations, or both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from transformers import PreTrainedModel

from del_core.lm.adapter import AttachedAdapter
from del_core.lm.device import products
from del_core.lm.model import BaseLM, FrozenLM, ModelError
from del_core.lm.perplexity import IGNORED
from del_core.lm.text import TokenWindows
from del_core.training.config import VariantConfig
from del_core.training.examples import Conversation, Conversations, Examples

_JUDGED = 16


class Source(Protocol):
    """Where the examples of stage 2 come from.

    Attributes:
        silent: whether the examples have no prompt, but a token that says nothing.
        identity: names it in checkpoints.
        validation: examples by which the best parameters are chosen.
        clear_validation: the same continuations behind what an LM without noise reads.
        test: examples of the perplexities that are reported.
    """

    silent: bool
    identity: Mapping[str, str]
    validation: tuple[Examples, ...]
    clear_validation: tuple[Examples, ...]
    test: Examples

    def batch(self, step: int) -> Examples:
        """Return the examples of a step."""

    def clear(self, step: int) -> Examples:
        """Return the same continuations behind the prompts that an LM without noise reads."""


class Distilled:
    """Examples of a source, with what the frozen LM expects of them in place of the text.

    What the LM expects when it reads the prompts in the clear (distillation; arXiv 1503.02531) says
    more of each token than the text, and learning it adapts the LM less to the text.

    With ``config.text_share``, that share of what is learned is the text: hard targets beside soft
    ones. With ``config.prompt_weight``, what is expected inside the prompt is learned, too, with
    this weight: every beginning of a prompt is a prompt, so one window teaches at all its tokens.

    Args:
        adapter: what is trained inside the model; the LM that is learned from has none.
    """

    def __init__(
        self, source: Source, model: PreTrainedModel, adapter: AttachedAdapter | None, config: VariantConfig
    ) -> None:
        self._source, self._model, self._adapter, self._config = source, model, adapter, config
        self._prompt_weight = 0.0 if source.silent else config.prompt_weight

    def batch(self, step: int) -> Examples:
        """Return the examples of a step."""
        own, clear = self._source.batch(step), self._source.clear(step)
        if self._prompt_weight:
            own, clear = (one.judging_prompts(self._prompt_weight) for one in (own, clear))
        with products(own.tokens.device, self._config.bf16):
            return self._with_wanted(own, clear)

    @property
    def validation(self) -> Iterator[Examples]:
        """Held-out examples in small batches: what is expected takes V numbers a token."""
        for own, clear in zip(self._source.validation, self._source.clear_validation, strict=True):
            for parts in zip(own.split(_JUDGED), clear.split(_JUDGED), strict=True):
                yield self._with_wanted(*parts)

    def _with_wanted(self, own: Examples, clear: Examples) -> Examples:
        with nullcontext() if self._adapter is None else self._adapter.disabled():
            wanted = clear.expected(self._model)
        if self._config.text_share:
            wanted = _toward(wanted, own.targets[own.targets != IGNORED], self._config.text_share)
        return replace(own, wanted=wanted)


def _toward(expected: torch.Tensor, targets: torch.Tensor, share: float) -> torch.Tensor:
    """Return log-probabilities (tokens, V) with ``share`` of the mass at the targets (tokens,)."""
    found = expected + math.log1p(-share)
    at = torch.arange(len(targets), device=targets.device), targets
    found[at] = torch.logaddexp(found[at], found.new_tensor(math.log(share)))
    return found


class TextSource:
    """Windows of the LM's text: their first part is private, and the text goes on."""

    silent = False

    def __init__(self, lm: FrozenLM, config: VariantConfig) -> None:
        self._config, self._windows = config, TokenWindows(lm.train, config.length, config.seed)
        self._begin = lm.bos_token_id
        self.identity: Mapping[str, str] = {}
        self.validation: tuple[Examples, ...] = (self._held_out(lm, lm.validation, config.evaluation_windows),)
        clear = TextSource._held_out(self, lm, lm.validation, config.evaluation_windows)
        self.clear_validation: tuple[Examples, ...] = (clear,)
        self.test = self._held_out(lm, lm.test, config.test_windows)

    def batch(self, step: int) -> Examples:
        """Return windows whose prompts have one random length."""
        return Examples.from_windows(*self._config.batch_of(self._windows, step), begin=self._begin)

    def clear(self, step: int) -> Examples:
        """Return the windows of a step."""
        return TextSource.batch(self, step)

    def _held_out(self, lm: FrozenLM, part: torch.Tensor, count: int) -> Examples:
        windows, prompt_tokens = lm.windows(part, self._config.length, count), self._config.prompt_tokens
        return Examples.from_windows(windows[:, :prompt_tokens], windows[:, prompt_tokens:], begin=self._begin)


class SilentSource(TextSource):
    """The same continuations, each behind one token that says nothing."""

    silent = True

    def __init__(self, lm: FrozenLM, config: VariantConfig) -> None:
        self._end = end_token(lm)
        super().__init__(lm, config)

    def batch(self, step: int) -> Examples:
        """Return the continuations of the windows of a step."""
        return self._silent(self._config.batch_of(self._windows, step)[1])

    def _held_out(self, lm: FrozenLM, part: torch.Tensor, count: int) -> Examples:
        return self._silent(lm.windows(part, self._config.length, count)[:, self._config.prompt_tokens :])

    def _silent(self, continuation: torch.Tensor) -> Examples:
        nothing = continuation.new_full((len(continuation), 1), self._end)
        return Examples.from_windows(nothing, continuation, begin=self._begin)


class ChatSource:
    """Conversations: their template is public, and the answer follows."""

    silent = False

    def __init__(self, conversations: Conversations, config: VariantConfig, device: torch.device) -> None:
        self._conversations, self._config, self._device = conversations, config, device
        self.identity: Mapping[str, str] = {"chat": conversations.sha256}
        held_out = conversations.examples(conversations.validation[: config.evaluation_windows], device)
        self.validation: tuple[Examples, ...] = (held_out,)
        self.clear_validation: tuple[Examples, ...] = self.validation
        self.test = conversations.examples(conversations.test[: config.test_windows], device)

    def batch(self, step: int) -> Examples:
        """Return conversations of similar length."""
        return self._conversations.examples(self._chosen(step), self._device)

    def _chosen(self, step: int) -> tuple[Conversation, ...]:
        return self._conversations.batch(step, self._config.batch, self._config.seed)

    def clear(self, step: int) -> Examples:
        """Return the conversations of a step."""
        return self.batch(step)


class SilentChatSource(ChatSource):
    """The same answers, with one token that says nothing in place of each private span."""

    silent = True

    def __init__(self, conversations: Conversations, config: VariantConfig, lm: FrozenLM) -> None:
        super().__init__(conversations, config, lm.embeddings.device)
        self._end, self._silent = end_token(lm), conversations.silent(end_token(lm))
        self.validation = (self._silent.examples(self._silent.validation[: config.evaluation_windows], self._device),)
        self.test = self._silent.examples(self._silent.test[: config.test_windows], self._device)

    def batch(self, step: int) -> Examples:
        """Return the conversations of a step: those that are of similar length in the clear."""
        return self._silent.examples([one.silent(self._end) for one in self._chosen(step)], self._device)

    def clear(self, step: int) -> Examples:
        """Return the conversations of a step."""
        return super().batch(step)


class MixedSource:
    """Text and conversations by turns. Both are held out; the perplexities reported are the text's.

    Args:
        share: of the steps that learn conversations.
    """

    def __init__(self, text: TextSource, chat: ChatSource, share: float) -> None:
        self._text, self._chat, self._share = text, chat, share
        self.silent = text.silent
        self.identity = chat.identity
        self.validation = text.validation + chat.validation
        self.clear_validation = text.clear_validation + chat.clear_validation
        self.test = text.test

    def _turn(self, step: int) -> tuple[Source, int]:
        """Return the source of a step, and which of that source's steps it is."""
        talks = int(step * self._share)
        if int((step + 1) * self._share) > talks:
            return self._chat, talks
        return self._text, step - talks

    def batch(self, step: int) -> Examples:
        """Return the examples of a step."""
        source, own = self._turn(step)
        return source.batch(own)

    def clear(self, step: int) -> Examples:
        """Return the same continuations or answers behind what an LM without noise reads."""
        source, own = self._turn(step)
        return source.clear(own)


def source_of(lm: FrozenLM, config: VariantConfig, chat: Conversations | None, *, silent: bool = False) -> Source:
    """Return the examples that ``config`` asks for: of the LM's text, of ``chat``, or of both.

    With ``silent``, one token that says nothing stands in place of what is private.
    """
    if chat is None:
        return SilentSource(lm, config) if silent else TextSource(lm, config)
    talk = SilentChatSource(chat, config, lm) if silent else ChatSource(chat, config, lm.embeddings.device)
    if config.chat_share == 1.0:
        return talk
    text = SilentSource(lm, config) if silent else TextSource(lm, config)
    return MixedSource(text, talk, config.chat_share)


def end_token(lm: BaseLM) -> int:
    """Return the id of the LM's end-of-text token, the first if there are several."""
    if not lm.end_tokens:
        raise ModelError("eos_token_id of the model must be a token, got none")
    return lm.end_tokens[0]
