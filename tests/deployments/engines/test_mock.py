"""The mock engine keeps the pace of continuous batching; tokens depend on positions."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from benchmarks.elasticity import PROFILES, clients_at
from deployments.engines.base import EngineDeadError, EngineSampling
from deployments.engines.mock import MockEngine, MockSettings, token_at

ROWS = np.zeros((40, 4), dtype=np.float32)


async def tokens_of(engine: MockEngine, sampling: EngineSampling, rows: int = 40) -> tuple[int, ...]:
    found: tuple[int, ...] = ()
    reasons = []
    async for delta in engine.generate("x", ROWS[:rows], sampling, shared_rows=32):
        found += delta.token_ids
        reasons.append(delta.finish_reason)
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    return found


@pytest.fixture
async def engine() -> MockEngine:
    settings = MockSettings(max_num_seqs=2, step_ms=1.0, step_ms_per_request=0.0, prompt_token_ms=0.0, quantum_ms=2.0)
    engine = MockEngine(settings)
    await engine.start()
    return engine


async def test_a_resumed_completion_goes_on(engine: MockEngine) -> None:
    whole = await tokens_of(engine, EngineSampling(max_tokens=20))
    assert whole == tuple(token_at(k) for k in range(20))
    assert await tokens_of(engine, EngineSampling(max_tokens=12, position=8, incremental=False)) == whole[8:]
    await engine.shutdown()


async def test_two_run_and_the_third_waits(engine: MockEngine) -> None:
    began = time.monotonic()
    await asyncio.gather(*(tokens_of(engine, EngineSampling(max_tokens=50)) for _ in range(3)))
    assert time.monotonic() - began >= 0.099  # twice 50 steps of a millisecond, never less
    await engine.shutdown()


async def test_a_reader_that_leaves_makes_room(engine: MockEngine) -> None:
    for _ in range(4):
        deltas = engine.generate("x", ROWS, EngineSampling(max_tokens=10_000))
        await anext(deltas)
        await deltas.aclose()
    assert len(await tokens_of(engine, EngineSampling(max_tokens=5))) == 5
    await engine.shutdown()
    with pytest.raises(EngineDeadError):
        await engine.check_health()


async def test_the_prefix_cache_knows_the_beginnings_of_earlier_prompts() -> None:
    rows = np.random.default_rng(0).random((100, 4), dtype=np.float32)
    other = np.concatenate([rows[:70], rows[:30]])
    engine = MockEngine(MockSettings(step_ms=0.1, step_ms_per_request=0.0, prompt_token_ms=0.0, cache_rows=256))
    await engine.start()

    async def cached(prompt: np.ndarray, shared_rows: int = 0) -> int | None:
        deltas = engine.generate("x", prompt, EngineSampling(max_tokens=1), shared_rows=shared_rows)
        (found,) = [delta.cached_rows async for delta in deltas]
        return found

    assert await cached(rows, shared_rows=32) == 32, "the soft prompt is there from the start"
    assert await cached(rows[:64]) == 64
    assert await cached(other) == 64, "two whole blocks are the same"
    assert await cached(rows[32:]) == 0, "the same rows at another place"
    for seed in range(1, 4):  # three prompts of three blocks each: the first one is forgotten
        assert await cached(np.random.default_rng(seed).random((100, 4), dtype=np.float32)) == 0
    assert await cached(rows) == 0
    await engine.shutdown()
    without = MockEngine(MockSettings(step_ms=0.1))
    await without.start()
    deltas = without.generate("x", rows, EngineSampling(max_tokens=1))
    assert [delta.cached_rows async for delta in deltas] == [None]
    await without.shutdown()


def test_profiles_begin_and_end_low_and_reach_the_most() -> None:
    for profile in PROFILES:
        counts = [clients_at(profile, share / 200, 100) for share in range(201)]
        assert counts[0] == counts[-1] == 5
        assert max(counts) == 100
    assert clients_at("step", 0.2, 100) == 100
    assert clients_at("ramp", 0.2, 100) == pytest.approx(52, abs=1)
