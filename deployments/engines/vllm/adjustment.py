"""Penalties, biases and grammars of a completion as a logits processor, in the engine's process.

vLLM's own penalties stop the engine if the prompt is embeddings, its biases and grammars do not
know the tokens of a resumed completion, and its grammars need a tokenizer in the engine. Here all
four depend on the completion's tokens only, so a completion that resumes on another replica
continues as the undisturbed one would.

A grammar is compiled when its request joins the batch, which takes milliseconds for usual schemas
and delays the other requests of the batch by that time; the wire format bounds its size, and
``Grammar.matcher`` the work for each token. Where the library gives up on a grammar, the completion
ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLTokenizer
from vllm import SamplingParams

from deployments.engines.base import Adjustment, Grammar
from deployments.engines.vllm.rows import RowsProcessor

_KEY = "del_adjustment"
_LARGEST = 1e30  # an infinite logit would make every probability of its row NaN


def adjustment_args(adjustment: Adjustment | None) -> dict[str, Any]:
    """Return the ``extra_args`` of an adjustment; they are plain values, which can be sent."""
    return {} if adjustment is None else {_KEY: dataclasses.asdict(adjustment)}


def _adjustment_of(given: dict[str, Any]) -> Adjustment:
    grammar = given["grammar"]
    return Adjustment(**{**given, "grammar": None if grammar is None else Grammar(**grammar)})


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str, end_token_ids: tuple[int, ...]) -> LLTokenizer:
    return LLTokenizer(path, eos_token=list(end_token_ids))


class _Matcher:
    """The state of one completion in its grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._end = torch.tensor(grammar.end_token_ids, dtype=torch.int64)
        # Sequences arrive as lists from another process.
        tokenizer = _tokenizer(grammar.tokenizer, tuple(grammar.end_token_ids))
        self._matcher = grammar.matcher(tokenizer)

    def consume(self, token_id: int) -> None:
        """Take the next token of the completion."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)

    def forbidden(self, size: int) -> torch.Tensor:
        """Return which of ``size`` tokens may not follow, bool (V,)."""
        allowed = torch.zeros(size, dtype=torch.bool)
        if not self._matcher.is_stopped():
            packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            bits = np.unpackbits(packed, bitorder="little")[:size]
            allowed[: len(bits)] = torch.from_numpy(bits).bool()
        if not allowed.any():  # complete, or the library gave up
            allowed[self._end] = True
        return ~allowed


class _Row:
    """One request of the batch, with the engine's growing list of its output."""

    def __init__(self, adjustment: Adjustment, output: Sequence[int]) -> None:
        self._adjustment = adjustment
        self._output = output
        self._read = 0
        self._counts: dict[int, int] = {}
        self._counts_tokens = (
            adjustment.repetition_penalty != 1 or adjustment.frequency_penalty != 0 or adjustment.presence_penalty != 0
        )
        pairs = adjustment.logit_bias
        self._bias = None
        if pairs:
            ids, values = zip(*pairs, strict=True)
            self._bias = (torch.tensor(ids, dtype=torch.int64), torch.tensor(values, dtype=torch.float32))
        self._matcher = None if adjustment.grammar is None else _Matcher(adjustment.grammar)
        for token_id in adjustment.resumed:
            self._take(token_id)

    def _take(self, token_id: int) -> None:
        if self._counts_tokens:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self._matcher is not None:
            self._matcher.consume(token_id)

    def apply(self, logits: torch.Tensor) -> None:
        """Adjust ``logits`` (V,) in place for the next token."""
        while self._read < len(self._output):
            self._take(self._output[self._read])
            self._read += 1
        device, adjustment = logits.device, self._adjustment
        if self._counts:
            ids = torch.tensor(list(self._counts), dtype=torch.int64, device=device)
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32, device=device)
            penalty = adjustment.repetition_penalty
            values = logits[ids]
            values = torch.where(values > 0, values / penalty, values * penalty).clamp(-_LARGEST, _LARGEST)
            logits[ids] = values - adjustment.frequency_penalty * counts - adjustment.presence_penalty
        if self._bias is not None:
            biased, bias = self._bias
            logits[biased.to(device)] += bias.to(device)
        if self._matcher is not None:
            logits.masked_fill_(self._matcher.forbidden(len(logits)).to(device), -torch.inf)


class AdjustedLogits(RowsProcessor[_Row]):
    """Logits processor that adjusts the rows of requests with :func:`adjustment_args` only."""

    @staticmethod
    def row_of(parameters: SamplingParams, output: list[int]) -> _Row | None:
        given = (parameters.extra_args or {}).get(_KEY)
        return None if given is None else _Row(_adjustment_of(given), output)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Adjust ``logits`` (batch, V) in place."""
        for index, row in self.rows.items():
            row.apply(logits[index])
        return logits
