"""The vLLM engine: cached soft prompts, gathered tokens, abandoned requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.engines.base import Delta, EngineDeadError, EngineSampling
from deployments.engines.vllm.engine import VllmEngine, VllmSettings
from tests.support.tiny import HIDDEN_SIZE, SOFT_PROMPT_LENGTH, Tiny


@contextlib.asynccontextmanager
async def started(tiny: Tiny) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(tiny.model, VllmSettings())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown()


def prompt(seed: int, rows: int = 40) -> NDArray[np.float32]:
    """Return one soft prompt for all seeds, and rows of this seed."""
    soft = np.random.default_rng(0).standard_normal((SOFT_PROMPT_LENGTH, HIDDEN_SIZE))
    own = np.random.default_rng(seed).standard_normal((rows, HIDDEN_SIZE))
    return np.concatenate([soft, own]).astype(np.float32)


async def generate(engine: VllmEngine, number: int, sampling: EngineSampling, rows: int = 40) -> list[Delta]:
    return [delta async for delta in engine.generate(str(number), prompt(number, rows), sampling)]


def tokens(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


@pytest.mark.cluster
async def test_the_engine_s_frontend(tiny: Tiny) -> None:
    """One engine for all checks, because its start is slow."""
    async with started(tiny) as engine:
        await _soft_prompts_are_always_cached(engine)
        await _gathering(engine)
        await _ids_after_prompts(engine)
        await _left_requests_stop(engine)
    with pytest.raises(EngineDeadError):
        await engine.check_health()


async def _soft_prompts_are_always_cached(engine: VllmEngine) -> None:
    """By the engine's count, every prompt but the first: alone, together, any length."""
    sampling = EngineSampling(max_tokens=2, temperature=0.0)
    (first,) = {delta.cached_rows for delta in await generate(engine, 1, sampling)}
    assert first == 0
    alone = [await generate(engine, number, sampling, rows=number) for number in range(2, 40)]
    together = await asyncio.gather(*(generate(engine, number, sampling) for number in range(40, 80)))
    assert {delta.cached_rows for deltas in [*alone, *together] for delta in deltas} == {SOFT_PROMPT_LENGTH}


async def _gathering(engine: VllmEngine) -> None:
    """Tokens are the same one by one, gathered by number or time, and all at the end."""
    one_by_one = await generate(engine, 100, EngineSampling(max_tokens=40, temperature=0.0))
    assert not any(delta.gathered for delta in one_by_one)
    patient = EngineSampling(max_tokens=40, temperature=0.0, gather_tokens=8, gather_s=1000.0)
    by_number = await generate(engine, 100, patient)
    sizes = [len(delta.token_ids) for delta in by_number]
    # A reader may come a little late and find more than it was woken for.
    assert sizes[0] < 8
    assert min(sizes[1:-1]) >= 8
    assert all(delta.gathered for delta in by_number)
    hasty = EngineSampling(max_tokens=200, temperature=0.0, gather_tokens=1000, gather_s=0.001)
    by_time = await generate(engine, 100, hasty)
    assert len(by_time) > 2  # the timer has gone off before the end
    whole = await generate(engine, 100, EngineSampling(max_tokens=40, temperature=0.0, incremental=False))
    assert len(whole) == 1
    assert tokens(one_by_one) == tokens(by_number) == tokens(whole) == tokens(by_time)[:40]
    assert [deltas[-1].finish_reason for deltas in (one_by_one, by_number, whole, by_time)] == ["length"] * 4


async def _ids_after_prompts(engine: VllmEngine) -> None:
    """Prompts that join running requests generate the same tokens as alone."""
    assert engine.gives_ids
    sampling = EngineSampling(max_tokens=24, temperature=0.0)
    expected = [tokens(await generate(engine, number, sampling)) for number in range(200, 216)]

    async def later(number: int) -> tuple[int, ...]:
        before = [engine.generate(f"b{number}", prompt(number - 1), sampling)]
        async with contextlib.aclosing(before[0]) as deltas:
            for _ in range(number % 5):
                await anext(deltas)
            return tokens(await generate(engine, number, sampling))

    found = await asyncio.gather(*(later(number) for number in range(200, 216)))
    assert found == expected
    assert len(set(expected)) == len(expected)


async def _left_requests_stop(engine: VllmEngine) -> None:
    """A new request does not wait for abandoned ones."""
    long = EngineSampling(max_tokens=400, temperature=0.0)
    for number in range(300, 340):
        deltas = engine.generate(str(number), prompt(number), long)
        assert (await anext(deltas)).token_ids
        await deltas.aclose()
    assert len(tokens(await generate(engine, 340, EngineSampling(max_tokens=3, temperature=0.0)))) == 3
