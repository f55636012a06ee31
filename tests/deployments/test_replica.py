"""The start of a replica: the engine has computed something before the first request."""

from __future__ import annotations

import numpy as np
import pytest

from deployments.engines.base import EngineDeadError
from deployments.replica import start_service, warm_up
from deployments.settings import parse_settings
from tests.support.scripted_engine import ScriptedEngine


async def test_the_engine_computes_a_short_completion_first() -> None:
    engine = ScriptedEngine()
    rows = np.ones((32, 8), dtype=np.float32)
    await warm_up(engine, rows)
    (call,) = engine.calls
    assert call.embeddings is rows
    assert call.sampling.max_tokens == 2
    assert call.finished
    assert call.closed


async def test_an_engine_that_cannot_generate_is_no_start() -> None:
    with pytest.raises(EngineDeadError):
        await warm_up(ScriptedEngine(dead=True), np.ones((32, 8), dtype=np.float32))


async def test_a_service_starts_with_the_mock_engine() -> None:
    service = await start_service(parse_settings({"engine": {"kind": "mock"}}))
    try:
        await service.check_health()
        assert service.context_length == 8192
    finally:
        await service.shutdown()
