"""The self-test at start takes an engine that is right, and refuses every one that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from del_core.bundle import Bundle
from del_core.demo import model_path
from del_core.wire import TokenLogprobs
from deployments.engines import MockEngine
from deployments.engines.base import Delta, EncodedPrompt, EngineSampling, EngineStartError, LookUp, variant_name
from deployments.replica import start_service
from deployments.service.base_model import BaseModelError, EmbeddingTable
from deployments.service.self_test import check_engine
from deployments.settings import parse_settings
from tests.support.tiny import HIDDEN_SIZE, VOCABULARY_SIZE

_WEIGHTS = np.random.default_rng(0).standard_normal((HIDDEN_SIZE, VOCABULARY_SIZE))


@dataclass
class SmallEngine:
    """A recurrent model of the rows of its prompt, with a fault.

    state <- 0.9 state + row; the logits are a linear function of the state.
    """

    bundle: Bundle
    table: EmbeddingTable
    fault: str = ""
    running: int = 0
    finished: list[str] = field(default_factory=list)

    context_length = 512

    async def look_up(self, token_ids: Sequence[int]) -> LookUp | None:
        if self.fault == "reads no rows":
            return None
        return LookUp(self.table.rows(token_ids) * (2 if self.fault == "other rows" else 1), "float32")

    def rows(self, prompt: EncodedPrompt | NDArray[np.float32]) -> NDArray[np.float32]:
        if not isinstance(prompt, EncodedPrompt):
            return prompt * (2 if self.fault == "embeddings" else 1)
        parts = []
        for name in self.bundle.variants:
            if prompt.variant == variant_name(self.bundle, name):
                decoder = self.bundle.build_decoder(name)
                parts.append(self.bundle.soft_prompt(name))
        for segment in prompt.segments:
            parts.append(self.table.rows(segment) if isinstance(segment, tuple) else decoder.decode(segment))
        return np.concatenate(parts)

    async def generate(self, request_id: str, prompt: Any, sampling: EngineSampling) -> AsyncGenerator[Delta, None]:
        self.running += 1
        rows = list(self.rows(prompt))
        try:
            state = np.zeros(HIDDEN_SIZE)
            for row in rows[:1] if self.fault == "reads the first row" else rows:
                state = 0.9 * state + row
            for number in range(sampling.max_tokens):
                await asyncio.sleep(0)  # the turn of another request
                seen = state * (1 + 0.1 * (self.running > 1)) if self.fault == "beside" else state
                logits = seen @ _WEIGHTS
                logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
                best = [int(one) for one in np.argsort(-logprobs)[: sampling.logprobs or 0]]
                token = 5 if self.fault == "constant" else best[0]
                known = TokenLogprobs(min(0.0, logprobs[token]), tuple((one, logprobs[one]) for one in best))
                reason = "length" if number + 1 == sampling.max_tokens else None
                yield Delta((token,), reason, logprobs=None if self.fault == "constant" else (known,))
                if self.fault != "forgets its tokens":
                    state = 0.9 * state + self.table.rows((token,))[0]
        finally:
            self.running -= 1
            self.finished.append(request_id)


@dataclass
class DecodingSmallEngine(SmallEngine):
    """The same, which decodes itself."""

    def add_bundle(self, bundle: Bundle) -> None:
        pass

    async def start(self) -> None:
        pass

    async def check_health(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass

    async def decode(self, prompt: EncodedPrompt) -> LookUp:
        rows = self.rows(prompt)
        if self.fault == "decodes another way":
            rows[-6] += 0.01
        return LookUp(rows[1:] if self.fault == "loses a row" else rows, "float32")


@pytest.mark.parametrize("kind", [SmallEngine, DecodingSmallEngine])
async def test_a_right_engine_is_taken(bundle: Bundle, table: EmbeddingTable, kind: type[SmallEngine]) -> None:
    engine: Any = kind(bundle, table)
    found, tested = await check_engine(engine, table, [bundle])
    assert tested
    assert found.rows((3,)).tolist() == table.rows((3,)).tolist()
    assert len(engine.finished) == (5 if kind is DecodingSmallEngine else 4)
    assert engine.running == 0


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("constant", "complete different prompts differently, got the same completion"),
        ("forgets its tokens", "complete a prompt in the same way begun anew after some of its tokens"),
        ("reads the first row", "complete a prompt in the same way begun anew after some of its tokens"),
        ("beside", "complete a prompt in the same way beside another request"),
        ("embeddings", "complete a prompt in the same way from embeddings"),
        ("decodes another way", "read the rows of the variant open that its decoder makes, got other rows, first for"),
        ("loses a row", r"read the rows of the variant open .* got rows of shape \(43, 64\), where \(44, 64\)"),
    ],
)
async def test_a_wrong_engine_is_refused(bundle: Bundle, table: EmbeddingTable, fault: str, said: str) -> None:
    engine: Any = DecodingSmallEngine(bundle, table, fault)
    with pytest.raises(EngineStartError, match=f"engine must {said}"):
        await check_engine(engine, table, [bundle])


async def test_other_rows_of_the_table_are_refused(bundle: Bundle, table: EmbeddingTable) -> None:
    engine: Any = SmallEngine(bundle, table, "other rows")
    with pytest.raises(BaseModelError, match="must be read by the engine with the rows of its weights"):
        await check_engine(engine, table, [bundle])


async def test_an_engine_that_reads_no_rows_is_not_compared(bundle: Bundle, table: EmbeddingTable) -> None:
    engine: Any = SmallEngine(bundle, table, "reads no rows")
    assert await check_engine(engine, table, [bundle]) == (table, False)
    assert not engine.finished


async def test_no_replica_starts_with_a_wrong_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock engine writes the same for every prompt. It is stopped when it is refused."""
    stopped = []

    async def look_up(engine: MockEngine, token_ids: Sequence[int]) -> LookUp:
        from del_core.bundle import load_bundle
        from del_core.demo import bundle_path

        table = EmbeddingTable.open(model_path(), load_bundle(bundle_path()).manifest.base_model)
        return LookUp(table.rows(token_ids), "float32")

    shutdown = MockEngine.shutdown

    async def stop(engine: MockEngine) -> None:
        stopped.append(engine)
        await shutdown(engine)

    monkeypatch.setattr(MockEngine, "look_up", look_up)
    monkeypatch.setattr(MockEngine, "shutdown", stop)
    with pytest.raises(EngineStartError, match="engine must complete"):
        await start_service(parse_settings({"engine": {"kind": "mock"}}))
    assert len(stopped) == 1
