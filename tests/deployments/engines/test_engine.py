"""The vLLM engine: cached soft prompts, gathered tokens, abandoned requests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Mapping

import jsonschema
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from del_core.bundle import Adapter, Bundle
from del_core.evaluation.measure import continuations
from del_core.lm.adapter import adapted
from del_core.lm.model import load_base_lm
from del_core.wire import StructuredOutputs
from deployments.engines.base import (
    Adjustment,
    Delta,
    EncodedPrompt,
    EngineDeadError,
    EngineSampling,
    variant_name,
)
from deployments.engines.vllm.engine import VllmEngine, VllmSettings
from deployments.service.base_model import EmbeddingTable
from deployments.service.self_test import check_engine
from deployments.service.structure import Grammars
from tests.support.adapters import random_adapter
from tests.support.serving_frames import private_segment
from tests.support.tiny import EOS_ID, HIDDEN_SIZE, SOFT_PROMPT_LENGTH, Tiny


@contextlib.asynccontextmanager
async def started(
    tiny: Tiny, adapters: Mapping[str, Adapter] | None = None, bundle: Bundle | None = None
) -> AsyncIterator[VllmEngine]:
    # Steps of a few rows: a long prompt takes several.
    engine = VllmEngine(tiny.model, VllmSettings(max_num_batched_tokens=96))
    if bundle is not None:
        engine.add_bundle(bundle)
    for name, adapter in (adapters or {}).items():
        engine.add_adapter(name, adapter)
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


async def generate(
    engine: VllmEngine, number: int, sampling: EngineSampling, rows: int = 40, adapter: str | None = None
) -> list[Delta]:
    deltas = engine.generate(f"{number}-{adapter}", prompt(number, rows), sampling, adapter=adapter)
    return [delta async for delta in deltas]


def tokens(deltas: list[Delta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


@pytest.mark.cluster
async def test_the_engine_s_frontend(tiny: Tiny, bundle: Bundle, table: EmbeddingTable) -> None:
    """One engine for all checks, because its start is slow."""
    async with started(tiny, bundle=bundle) as engine:
        await _soft_prompts_are_always_cached(engine)
        await _gathering(engine)
        await _ids_after_prompts(engine)
        await _left_requests_stop(engine)
        await _adjusted_logits(engine, tiny)
        await _logarithms(engine)
        await _counts_are_decoded_in_the_engine(engine, bundle, table)
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


async def _adjusted_logits(engine: VllmEngine, tiny: Tiny) -> None:
    """Greedy, seeded and unseeded requests with structures, biases and penalties in one batch."""
    tokenizer = Tokenizer.from_file(str(tiny.model / "tokenizer.json"))
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "ages": {"type": "array", "maxItems": 3}},
        "required": ["name", "ages"],
        "additionalProperties": False,
    }
    schema["properties"]["ages"]["items"] = {"type": "integer", "minimum": 0, "maximum": 150}  # type: ignore[index]
    grammar = Grammars(tiny.model / "tokenizer.json", (EOS_ID,)).grammar(StructuredOutputs(json=json.dumps(schema)))

    def sampling(adjustment: Adjustment | None, seed: int | None, temperature: float = 1.0) -> EngineSampling:
        return EngineSampling(200, temperature, seed=seed, stop_token_ids=(EOS_ID,), adjustment=adjustment)

    structured = [sampling(Adjustment(grammar=grammar), seed) for seed in (None, None, 5, 5, 6)]
    structured.append(sampling(Adjustment(grammar=grammar), None, 0.0))
    others = [
        sampling(Adjustment(logit_bias=((7, 100.0),)), 3),
        # Of two biased tokens, the one that was generated less often is the more probable.
        sampling(Adjustment(frequency_penalty=2.0, logit_bias=((7, 90.0), (8, 90.0))), None, 0.0),
        sampling(None, None, 0.0),
    ]
    number = itertools.count(400)
    asked = [*structured, *others]
    found = [tokens(one) for one in await asyncio.gather(*(generate(engine, next(number), one) for one in asked))]
    for one in found[: len(structured)]:
        assert one[-1] == EOS_ID
        jsonschema.validate(json.loads(tokenizer.decode(list(one[:-1]))), schema)
    assert len(set(found[: len(structured)])) > 2
    biased, penalized, plain = found[len(structured) :]
    assert set(biased) == {7}
    assert set(penalized[:40]) == {7, 8}
    assert plain == tokens(await generate(engine, 408, others[-1]))


async def _logarithms(engine: VllmEngine) -> None:
    """The greedy token is the first of the most probable ones; requests beside it get none."""
    asked = [EngineSampling(8, 0.0, logprobs=3), EngineSampling(8, 0.0), EngineSampling(8, seed=1, logprobs=0)]
    greedy, none, seeded = await asyncio.gather(*(generate(engine, 500 + n, one) for n, one in enumerate(asked)))
    assert all(delta.logprobs is None for delta in none)
    values = [one for delta in greedy for one in delta.logprobs or ()]
    assert [one.top[0] for one in values] == [(t, v.logprob) for t, v in zip(tokens(greedy), values, strict=True)]
    for one in values:
        assert len(one.top) == 3
        assert sum(np.exp([logprob for _, logprob in one.top])) <= 1 + 1e-6
    drawn = [one for delta in seeded for one in delta.logprobs or ()]
    assert len(drawn) == 8
    assert all(one.top == () and one.logprob <= 0 for one in drawn)


async def _counts_are_decoded_in_the_engine(engine: VllmEngine, bundle: Bundle, table: EmbeddingTable) -> None:
    """The same tokens as from embeddings, together and in several steps; cached by the counts."""
    _, tested = await check_engine(engine, table, [bundle])
    assert tested
    sampling = EngineSampling(max_tokens=12, temperature=0.0)
    prompts, rows = [], []
    for variant, length, seed in (("open", 20, 1), ("strict", 60, 2), ("open", 300, 3), ("strict", 200, 4)):
        counts = private_segment(bundle, variant, length, seed).codes
        prompts.append(EncodedPrompt(variant_name(bundle, variant), ((7, 8), counts, counts[:9], (9, 10))))
        decoder = bundle.build_decoder(variant)
        parts = [table.rows((7, 8)), decoder.decode(counts), decoder.decode(counts[:9]), table.rows((9, 10))]
        rows.append(np.concatenate([bundle.soft_prompt(variant), *parts]))

    async def complete(name: str, prompt: EncodedPrompt | NDArray[np.float32]) -> list[Delta]:
        return [delta async for delta in engine.generate(name, prompt, sampling)]

    expected = [tokens(await complete(f"r{n}", prompt)) for n, prompt in enumerate(rows)]
    together = await asyncio.gather(*(complete(f"p{n}", prompt) for n, prompt in enumerate(prompts)))
    assert [tokens(deltas) for deltas in together] == expected
    again = await complete("again", prompts[2])
    assert tokens(again) == expected[2]
    assert again[0].cached_rows == (len(rows[2]) - 1) // 32 * 32
    other = EncodedPrompt(prompts[2].variant, ((7, 9), *prompts[2].segments[1:]))
    assert (await complete("other", other))[0].cached_rows == SOFT_PROMPT_LENGTH


@pytest.mark.cluster
async def test_each_request_is_answered_with_its_adapter(tiny: Tiny) -> None:
    """Greedy tokens of adapters of two ranks, and of the model as it is, equal transformers'."""
    lm = load_base_lm(tiny.model)
    adapters = {f"rank-{rank}": random_adapter(lm.model, rank) for rank in (3, 8)}
    sampling = EngineSampling(max_tokens=16, temperature=0.0)
    jobs = [(number, name) for number in range(1, 5) for name in (None, *adapters)]

    def expected(number: int, name: str | None) -> tuple[int, ...]:
        rows = torch.from_numpy(prompt(number))[None]
        with torch.no_grad(), adapted(lm.model, None if name is None else adapters[name]):
            return tuple(continuations(lm.model, rows, sampling.max_tokens)[0].tolist())

    async with started(tiny, adapters) as engine:
        found = await asyncio.gather(*(generate(engine, number, sampling, adapter=name) for number, name in jobs))
        again = await asyncio.gather(*(generate(engine, number, sampling, adapter=name) for number, name in jobs))
    written = [tokens(deltas) for deltas in found]
    assert written == [expected(*job) for job in jobs]
    assert [tokens(deltas) for deltas in again] == written
    assert len(set(written)) == len(jobs), "an adapter has changed nothing"
    # The cache holds a prompt's rows by adapter: a whole block of each is found again.
    assert all(deltas[0].cached_rows for deltas in again)
