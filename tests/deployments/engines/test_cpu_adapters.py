"""Products with adapters on CPUs against exact sums, for any mix of adapters in a step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from deployments.engines.vllm.cpu_adapters import group_by_adapter, multiply_once_per_adapter

PLACES, RANK, WIDTH = 3, 8, 24
SIZES = (16, 8, 8)  # of three layers that vLLM has packed, as queries, keys and values
ADAPTERS = {1: 4, 2: 8}  # ids, and the ranks that they use; the last place has none


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the products, and take everything back after the test."""
    monkeypatch.setattr(LoRAModelManager, "activate_adapter", lambda self, lora_id: lora_id in ADAPTERS)
    for name in ("add_lora_linear", "update_metadata"):
        monkeypatch.setattr(PunicaWrapperCPU, name, getattr(PunicaWrapperCPU, name))
    assert multiply_once_per_adapter()
    ours = PunicaWrapperCPU.add_lora_linear
    assert multiply_once_per_adapter(), "a second call must find that everything is done"
    assert PunicaWrapperCPU.add_lora_linear is ours
    yield
    monkeypatch.undo()


def stacked(dtype: torch.dtype, seed: int = 0) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return the matrices of all places, as vLLM stacks them: unused ranks and places are zero."""
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.zeros(PLACES, 1, RANK, WIDTH, dtype=dtype) for _ in SIZES)
    b = tuple(torch.zeros(PLACES, 1, size, RANK, dtype=dtype) for size in SIZES)
    for place, rank in enumerate(ADAPTERS.values()):
        for one, other, size in zip(a, b, SIZES, strict=True):
            one[place, 0, :rank] = torch.randn(rank, WIDTH, generator=generator).to(dtype)
            other[place, 0, :, :rank] = torch.randn(size, rank, generator=generator).to(dtype)
    return a, b


def step(ids: list[int], *, prefill: bool) -> PunicaWrapperCPU:
    """Return vLLM's object of a step whose tokens have the adapters ``ids``, 0 for none."""
    found = PunicaWrapperCPU(max_num_batched_tokens=256, max_batches=256, device="cpu")
    mapping = LoRAMapping(tuple(ids), tuple(ids), is_prefill=prefill)
    found.update_metadata(mapping, [*ADAPTERS, None], PLACES, 1000)
    return found


def exact(
    ids: list[int], x: torch.Tensor, y: torch.Tensor, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Return what ``y`` must be after the products, in float64."""
    wanted = y.double().clone()
    for row, number in enumerate(ids):
        if number:
            place = list(ADAPTERS).index(number)
            sums = [
                x[row].double() @ one[place, 0].double().T @ other[place, 0].double().T
                for one, other in zip(a, b, strict=True)
            ]
            wanted[row] += torch.cat(sums)
    return wanted


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 3), max_size=80))
def test_every_row_is_in_the_group_of_its_adapter(places: list[int]) -> None:
    rows = torch.arange(len(places))
    found = {place: rows[group].tolist() for place, group in group_by_adapter(places)}
    assert found == {
        place: [row for row, own in enumerate(places) if own == place] for place in dict.fromkeys(places) if place >= 0
    }


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "ids",
    [[0, 0, 0], [1], [2] * 5, [1] * 100, [1, 2, 0, 1, 0, 2], [2] * 40 + [0] * 3 + [1] * 50, [1, 2] * 50],
    ids=["none", "one token", "one adapter", "many tokens", "mixed", "runs", "many, mixed"],
)
def test_products_are_exact_sums(ids: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = stacked(dtype)
    x = torch.randn(len(ids), WIDTH, generator=generator).to(dtype)
    before = torch.randn(len(ids), sum(SIZES), generator=generator).to(dtype)
    wanted = exact(ids, x, before, a, b)
    # The inner product of many tokens is rounded to the model's type, as vLLM rounds it.
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for prefill in (False, True):
        y = before.clone()
        step(ids, prefill=prefill).add_lora_linear(y, x, a, b, 1.0, SIZES)
        assert (y.double() - wanted).abs().max() <= near * wanted.abs().max()
        without = [row for row, number in enumerate(ids) if not number]
        assert torch.equal(y[without], before[without])


@pytest.mark.usefixtures("replaced")
def test_they_are_nearer_than_those_that_they_replace() -> None:
    ids, generator = [1, 2, 2, 1], torch.Generator().manual_seed(2)
    a, b = stacked(torch.bfloat16)
    x = torch.randn(len(ids), WIDTH, generator=generator).bfloat16()
    zero = torch.zeros(len(ids), sum(SIZES), dtype=torch.bfloat16)
    wanted, errors = exact(ids, x, zero, a, b), []
    for add in (PunicaWrapperCPU.add_lora_linear, PunicaWrapperCPU.add_lora_linear.replaces):
        y = zero.clone()
        add(step(ids, prefill=False), y, x, a, b, 1.0, SIZES)
        errors.append(float((y.double() - wanted).abs().mean()))
    assert errors[0] <= errors[1] <= 0.02 * float(wanted.abs().max())


@pytest.mark.usefixtures("replaced")
def test_matrices_that_change_are_laid_out_anew() -> None:
    a, b = stacked(torch.float32)
    x, y = torch.ones(1, WIDTH), torch.zeros(1, sum(SIZES))
    step([1], prefill=False).add_lora_linear(y.clone(), x, a, b, 1.0, SIZES)
    for one, other in zip((*a, *b), (part for parts in stacked(torch.float32, seed=5) for part in parts), strict=True):
        one.copy_(other)
    assert LoRAModelManager.activate_adapter(None, 1)  # the moment at which vLLM writes them
    step([1], prefill=False).add_lora_linear(y, x, a, b, 1.0, SIZES)
    assert torch.allclose(y.double(), exact([1], x, torch.zeros(1, sum(SIZES)), a, b), atol=1e-4)
