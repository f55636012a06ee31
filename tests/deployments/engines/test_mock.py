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


def test_profiles_begin_and_end_low_and_reach_the_most() -> None:
    for profile in PROFILES:
        counts = [clients_at(profile, share / 200, 100) for share in range(201)]
        assert counts[0] == counts[-1] == 5
        assert max(counts) == 100
    assert clients_at("step", 0.2, 100) == 100
    assert clients_at("ramp", 0.2, 100) == pytest.approx(52, abs=1)
