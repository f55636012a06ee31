"""Rows of prompts become embeddings step by step, as vLLM's scheduler asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from del_core.bundle import Bundle
from deployments.engines.base import EncodedPrompt, variant_name
from deployments.engines.vllm.prompts import Prompts, RowFormat
from deployments.service.base_model import EmbeddingTable
from tests.support.serving_frames import private_segment
from tests.support.tiny import HIDDEN_SIZE, SOFT_PROMPT_LENGTH

_CONTEXT = 3


class _Window:
    """A decoder whose row is the sum of counts of the row and of some before it."""

    context = _CONTEXT

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        self.batches.append(list(lengths))
        return torch.cat([self.rows(segment) for segment in codes.split(list(lengths))])

    @staticmethod
    def rows(codes: torch.Tensor) -> torch.Tensor:
        sums = codes.double().sum(1).cumsum(0)
        before = torch.cat([torch.zeros(_CONTEXT + 1).double(), sums])[: len(sums)]
        return (sums - before).float()[:, None].expand(-1, HIDDEN_SIZE)


def _worker(table: EmbeddingTable, **fields: Any) -> Any:
    model = SimpleNamespace(embed_input_ids=lambda ids: torch.from_numpy(table.rows(ids.tolist())))
    runner = SimpleNamespace(get_model=lambda: model, device=torch.device("cpu"))
    config = SimpleNamespace(dtype=torch.float32, get_inputs_embeds_size=lambda: HIDDEN_SIZE)
    return SimpleNamespace(model_runner=runner, model_config=config, **fields)


def _new(request_id: str, rows: NDArray[np.uint8], computed: int = 0) -> Any:
    return SimpleNamespace(req_id=request_id, prompt_embeds=torch.from_numpy(rows), num_computed_tokens=computed)


def _step(scheduled: dict[str, int], *new: Any, finished: Sequence[str] = (), **computed: int) -> Any:
    """A scheduler's output; ``computed`` are the requests of earlier steps."""
    cached = SimpleNamespace(req_ids=list(computed), num_computed_tokens=list(computed.values()))
    return SimpleNamespace(
        scheduled_new_reqs=list(new),
        scheduled_cached_reqs=cached,
        num_scheduled_tokens=scheduled,
        finished_req_ids=set(finished),
    )


def _prompt(bundle: Bundle, variant: str, seed: int) -> EncodedPrompt:
    """Two private segments, one right after the other, between public ones."""
    one, two = (private_segment(bundle, variant, tokens, seed + tokens).codes for tokens in (9, 5))
    return EncodedPrompt(variant_name(bundle, variant), ((7, 8), one, two, (9, 10, 11)))


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> _Window:
    decoder = _Window()
    monkeypatch.setattr("del_core.lm.decoding.batch_decoder", lambda *_: decoder)
    return decoder


def _expected(bundle: Bundle, table: EmbeddingTable, variant: str, prompt: EncodedPrompt) -> NDArray[np.float32]:
    first, one, two, last = prompt.segments
    private = [_Window.rows(torch.from_numpy(segment)).numpy() for segment in (one, two)]
    parts = [bundle.soft_prompt(variant), table.rows(first), *private, table.rows(last)]  # type: ignore[arg-type]
    return np.concatenate(parts)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_every_step_makes_the_rows_that_it_computes(
    bundle: Bundle, table: EmbeddingTable, window: _Window, size: int
) -> None:
    """Whatever the size of the steps, and from a cached prefix on."""
    prompts, form = Prompts(_worker(table), [bundle]), RowFormat([bundle])
    prompt = _prompt(bundle, "open", 1)
    rows = form.encode(prompt)
    for computed in (0, SOFT_PROMPT_LENGTH, SOFT_PROMPT_LENGTH + 13):
        request = _new("a", rows, computed)
        prompts.prepare(_step({"a": size}, request))
        for start in range(computed + size, len(rows), size):
            prompts.prepare(_step({"a": size}, a=start))
        prompts.prepare(_step({"a": 1}, a=len(rows) + 2))  # a generated token
        expected = _expected(bundle, table, "open", prompt)
        np.testing.assert_array_equal(request.prompt_embeds[computed:].numpy(), expected[computed:])
        prompts.prepare(_step({}, finished=["a"]))
    # After a preemption, rows are made again from wherever the engine begins.
    request = _new("b", rows, SOFT_PROMPT_LENGTH)
    prompts.prepare(_step({"b": len(rows)}, request))
    prompts.prepare(_step({"b": len(rows)}, b=0))
    np.testing.assert_array_equal(request.prompt_embeds.numpy(), expected)


def test_prompts_of_a_step_are_decoded_in_one_batch_of_each_variant(
    bundle: Bundle, table: EmbeddingTable, window: _Window
) -> None:
    prompts, form = Prompts(_worker(table), [bundle]), RowFormat([bundle])
    asked = {name: _prompt(bundle, variant, seed) for seed, (name, variant) in enumerate(
        [("a", "open"), ("b", "strict"), ("c", "open")]
    )}  # fmt: skip
    requests = {name: _new(name, form.encode(prompt)) for name, prompt in asked.items()}
    prompts.prepare(_step(dict.fromkeys(asked, 100), *requests.values()))
    assert sorted(window.batches) == [[9, 5], [9, 5, 9, 5]]
    for name, variant in (("a", "open"), ("b", "strict"), ("c", "open")):
        expected = _expected(bundle, table, variant, asked[name])
        np.testing.assert_array_equal(requests[name].prompt_embeds.numpy(), expected)
    clear = _new("d", form.encode(EncodedPrompt(None, ((3, 4), (5,)))))
    other = SimpleNamespace(req_id="e", prompt_embeds=torch.ones(3, HIDDEN_SIZE), num_computed_tokens=0)
    prompts.prepare(_step({"d": 3, "e": 3}, clear, other))
    np.testing.assert_array_equal(clear.prompt_embeds.numpy(), table.rows((3, 4, 5)))
    assert other.prompt_embeds.eq(1).all()  # embeddings stay what they are


def test_a_runner_that_copies_prompts_at_once_gets_them_whole(
    bundle: Bundle, table: EmbeddingTable, window: _Window
) -> None:
    prompts, form = Prompts(_worker(table, use_v2_model_runner=True), [bundle]), RowFormat([bundle])
    prompt = _prompt(bundle, "open", 1)
    request = _new("a", form.encode(prompt))
    prompts.prepare(_step({"a": 2}, request))
    np.testing.assert_array_equal(request.prompt_embeds.numpy(), _expected(bundle, table, "open", prompt))
    prompts.prepare(_step({"a": 2}, a=2))
    assert window.batches == [[9, 5]]


def test_rows_name_what_they_are_made_from(bundle: Bundle) -> None:
    """Equal prefixes have equal rows, for the cache; other counts, variants and ids have others."""
    form = RowFormat([bundle])
    prompt = _prompt(bundle, "open", 1)
    rows = form.encode(prompt)
    again = form.encode(EncodedPrompt(prompt.variant, (*prompt.segments, (12,))))
    np.testing.assert_array_equal(again[: len(rows)], rows)
    assert len({bytes(row) for row in rows}) == len(rows)
    other = form.encode(_prompt(bundle, "strict", 1))
    assert not {bytes(row) for row in rows[:-3]} & {bytes(row) for row in other[:SOFT_PROMPT_LENGTH]}
    assert rows.nbytes < HIDDEN_SIZE * len(rows)
