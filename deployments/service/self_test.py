"""The self-test of a replica's engine, before the replica is ready.

An engine is a large program that this project configures and, in places, extends. A release, a
device or a setting may make it read a prompt wrongly without an error, and its answers are then
fluent and of no use. So the service compares on the engine that will answer:

- a few rows of the embedding table with those that the engine reads for their ids;
- a short prompt under every variant, as an engine that decodes reads it, with the rows of the numpy
  decoder;
- a greedy completion with the same one begun anew after some of its tokens (what one step computes
  for a token, another computes for a prompt); beside another request; and, where an engine
  decodes, from embeddings;
- the completions of two prompts, which must not be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from del_core.bundle import Bundle
from del_core.wire import TokenLogprobs
from deployments.engines.base import (
    DecodingEngine,
    EncodedPrompt,
    Engine,
    EngineSampling,
    EngineStartError,
    variant_name,
)
from deployments.service.base_model import EmbeddingTable, rounding

__all__ = ["check_engine"]

_ROWS = 8
"""Rows of the embedding table that are compared."""
_COUNTS = 4
"""Private tokens in each segment of a compared prompt."""
_PROMPT, _TOKENS, _BEGUN = 32, 6, 3
"""Tokens of a compared completion's prompt, of the completion, and those given to begin it anew."""
_LOGPROBS = 2
_LEAST_TIE, _TIE_ROUNDINGS = 0.01, 64.0
"""Logarithms of probabilities are the same within this, or this many roundings of the engine's type
if that is more: a model adds the errors of its layers up. Wrong rows change them by far more."""

Prompt = EncodedPrompt | NDArray[np.float32]


@dataclass(frozen=True)
class _Completion:
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None


async def check_engine(engine: Engine, table: EmbeddingTable, bundles: Sequence[Bundle]) -> tuple[EmbeddingTable, bool]:
    """Return the table in the engine's type, and whether the engine reads rows and was compared.

    Raises BaseModelError if the engine reads other rows of the table, EngineStartError if it
    decodes or completes wrongly.
    """
    vocabulary = bundles[0].manifest.base_model.vocabulary_size
    token_ids = _spread(vocabulary, _ROWS)
    looked_up = await engine.look_up(token_ids)
    if looked_up is None:
        return table, False
    table = table.matched(token_ids, looked_up)
    if isinstance(engine, DecodingEngine):
        for bundle in bundles:
            for name in bundle.variants:
                await _check_variant(engine, table, bundle, name)
    await _check_completions(engine, table, vocabulary, max(_LEAST_TIE, _TIE_ROUNDINGS * rounding(looked_up.dtype)))
    return table, True


def _spread(vocabulary: int, count: int, offset: int = 0) -> tuple[int, ...]:
    """Return ids that are spread over the vocabulary."""
    return tuple(dict.fromkeys((vocabulary * part // count + offset) % vocabulary for part in range(count)))


async def _check_variant(engine: DecodingEngine, table: EmbeddingTable, bundle: Bundle, name: str) -> None:
    """Compare a prompt of two private segments and a public one between them."""
    mechanism, decoder = bundle.mechanism(name), await asyncio.to_thread(bundle.build_decoder, name)
    every = np.arange(2 * _COUNTS * mechanism.dim).reshape(2, _COUNTS, mechanism.dim)
    first, second = (every * 7 % (mechanism.largest_count + 1)).astype(np.uint8)
    token_ids = _spread(bundle.manifest.base_model.vocabulary_size, _COUNTS)
    found = await engine.decode(EncodedPrompt(variant_name(bundle, name), (first, token_ids, second)))
    parts = (bundle.soft_prompt(name), decoder.decode(first), table.rows(token_ids), decoder.decode(second))
    expected = np.concatenate(parts)
    if found.rows.shape == expected.shape:
        # The engine rounds to its type once; sums of float32 in another order differ much less.
        allowed = 4 * rounding(found.dtype) + 64 * rounding("float32")
        wrong = np.any(np.abs(found.rows - expected) > allowed * np.abs(expected).max(axis=1, keepdims=True), axis=1)
        if not wrong.any():
            return
        got = f"other rows, first for row {int(np.argmax(wrong))} of {len(expected)}"
    else:
        got = f"rows of shape {found.rows.shape}, where {expected.shape} was due"
    raise EngineStartError(f"engine must read the rows of the variant {name} that its decoder makes, got {got}")


async def _check_completions(engine: Engine, table: EmbeddingTable, vocabulary: int, tie: float) -> None:
    first, second = _spread(vocabulary, _PROMPT), _spread(vocabulary, _PROMPT, offset=1)

    def prompt(token_ids: tuple[int, ...]) -> Prompt:
        return EncodedPrompt(None, (token_ids,)) if isinstance(engine, DecodingEngine) else table.rows(token_ids)

    alone = await _complete(engine, "alone", prompt(first), _TOKENS)
    begun = await _complete(engine, "begun", prompt((*first, *alone.tokens[:_BEGUN])), _TOKENS - _BEGUN)
    beside, other = await asyncio.gather(
        _complete(engine, "beside", prompt(first), _TOKENS), _complete(engine, "other", prompt(second), _TOKENS)
    )
    compared = {"begun anew after some of its tokens": (begun, _BEGUN), "beside another request": (beside, 0)}
    if isinstance(engine, DecodingEngine):
        compared["from embeddings"] = (await _complete(engine, "rows", table.rows(first), _TOKENS), 0)
    for how, (completion, start) in compared.items():
        if not _same(alone, completion, start, tie):
            raise EngineStartError(f"engine must complete a prompt in the same way {how}, got another completion")
    if (alone.tokens, alone.logprobs) == (other.tokens, other.logprobs):
        raise EngineStartError("engine must complete different prompts differently, got the same completion")


async def _complete(engine: Engine, name: str, prompt: Prompt, tokens: int) -> _Completion:
    sampling = EngineSampling(max_tokens=tokens, temperature=0.0, logprobs=_LOGPROBS)
    deltas = engine.generate(f"self-test-{name}", prompt, sampling)  # type: ignore[arg-type]  # see `prompt`
    ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            ids += delta.token_ids
            logprobs += delta.logprobs or ()
    return _Completion(tuple(ids), tuple(logprobs) if len(logprobs) == len(ids) else None)


def _same(one: _Completion, other: _Completion, start: int, tie: float) -> bool:
    """Return whether ``other`` is ``one`` from token ``start`` on, but for the choice at a tie."""
    tokens = one.tokens[start:]
    if len(tokens) != len(other.tokens):
        return False
    if one.logprobs is None or other.logprobs is None:
        return tokens == other.tokens
    for token, theirs, known, found in zip(tokens, other.tokens, one.logprobs[start:], other.logprobs, strict=True):
        if token != theirs:
            return _near(_top(known, theirs), known.logprob, tie) and _near(_top(found, token), found.logprob, tie)
        values = zip(known.top, found.top, strict=True)
        if not all(_near(mine, theirs, tie) for (_, mine), (_, theirs) in values):
            return False
    return True


def _near(one: float, other: float, tie: float) -> bool:
    """Compare logarithms: an error of the logits is relative to their size."""
    return bool(np.isfinite(one)) and abs(one - other) <= tie * max(1.0, abs(one), abs(other))


def _top(known: TokenLogprobs, token_id: int) -> float:
    return dict(known.top).get(token_id, -np.inf)
