"""Products with adapters on CPUs, in the engine's process.

vLLM (0.32) copies the matrices of an adapter once for each token of a step, in each layer, before
it multiplies (``vllm/lora/ops/torch_ops``), and multiplies for requests without an adapter, too.
Here the tokens of a step are grouped by adapter once, and a layer takes two products for each
adapter that the step uses, with matrices that are laid out once.

A few tokens are multiplied in float32, since small products in bfloat16 take several times as long
on CPUs; many are multiplied in the type of the model.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

    Rows: TypeAlias = slice | torch.Tensor
    Stacked: TypeAlias = tuple[torch.Tensor, ...]

_FEW = 32  # tokens from which on products in bfloat16 are as fast

__all__ = ["group_by_adapter", "multiply_once_per_adapter", "pack"]


def group_by_adapter(places: list[int]) -> list[tuple[int, Rows]]:
    """Return the rows of each adapter of a step, from the place of each row's adapter.

    Rows without an adapter have the place -1, and are in no group. Rows that follow each other are
    a slice.
    """
    import torch

    runs: dict[int, list[range]] = {}
    start = 0
    for row in range(1, len(places) + 1):
        if row == len(places) or places[row] != places[start]:
            runs.setdefault(places[start], []).append(range(start, row))
            start = row
    runs.pop(-1, None)
    return [
        (place, slice(found[0].start, found[0].stop) if len(found) == 1 else torch.tensor([*itertools.chain(*found)]))
        for place, found in runs.items()
    ]


def pack(
    stacked_a: Stacked, stacked_b: Stacked, sizes: tuple[int, ...], place: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 matrices A (ranks, columns of x) and B (ranks, sum of ``sizes``).

    They are those of one adapter: x A^T B is what it adds to the outputs, side by side, of the
    layers that vLLM has packed. Ranks that the adapter does not use are left out.

    Args:
        stacked_a: for each layer (places, 1, rank, columns of x).
        stacked_b: for each layer (places, 1, size, rank).
    """
    import torch

    rows, columns, begin = [], [], 0
    for a, b, size in zip(stacked_a, stacked_b, sizes, strict=True):
        used = (a[place, 0] != 0).any(dim=1)
        rows.append(a[place, 0][used].float())
        own = torch.zeros(int(used.sum()), sum(sizes), device=a.device)
        own[:, begin : begin + size] = b[place, 0][:, used].float().t()
        columns.append(own)
        begin += size
    return torch.cat(rows), torch.cat(columns)


def multiply_once_per_adapter() -> bool:
    """Replace vLLM's products with adapters if it computes on CPUs and has what is replaced.

    Returns whether it did. Otherwise vLLM's own products serve. Idempotent.
    """
    from torch.nn.functional import linear
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.platforms import current_platform

    replaced = ("add_lora_linear", "update_metadata", "token_lora_indices")
    known = all(hasattr(PunicaWrapperCPU, name) for name in replaced) and hasattr(LoRAModelManager, "activate_adapter")
    if not known or not current_platform.is_cpu():
        return False
    update, add = PunicaWrapperCPU.update_metadata, PunicaWrapperCPU.add_lora_linear
    activate = LoRAModelManager.activate_adapter
    if hasattr(add, "replaces"):
        return True
    packed: dict[tuple[int, int], tuple[tuple[Any, ...], tuple[Any, ...]]] = {}

    def activate_adapter(self: Any, lora_id: int) -> bool:
        """Write an adapter's matrices to its place: the only moment at which any change."""
        changed: bool = activate(self, lora_id)
        if changed:
            packed.clear()
        return changed

    def update_metadata(self: Any, *arguments: Any, **options: Any) -> None:
        """Take over the adapters of a step's tokens."""
        update(self, *arguments, **options)
        self.del_groups = group_by_adapter(self.token_lora_indices.tolist())

    def add_lora_linear(
        self: Any, y: Any, x: Any, stacked_a: Any, stacked_b: Any, scale: float, sizes: Any, **options: Any
    ) -> None:
        """Add to ``y`` (rows, sum of ``sizes``), in place, what adapters make of x."""
        if options or scale != 1.0:  # what vLLM does on GPUs alone
            add(self, y, x, stacked_a, stacked_b, scale, sizes, **options)
            return
        for place, rows in self.del_groups:
            key = stacked_a[0].data_ptr(), place
            if key not in packed:
                exact = pack(stacked_a, stacked_b, sizes, place)
                packed[key] = exact, tuple(one.to(y.dtype) for one in exact)
            own = x[rows]
            a, b = packed[key][len(own) > _FEW]
            inner = linear(own.to(a.dtype), a)
            if not isinstance(rows, slice):
                y.index_add_(0, rows, (inner @ b).to(y.dtype))
            elif b.dtype == y.dtype:
                y[rows].addmm_(inner, b)
            else:
                y[rows].add_((inner @ b).to(y.dtype))  # the sum of two types takes ten times as long

    add_lora_linear.replaces = add  # type: ignore[attr-defined]
    PunicaWrapperCPU.update_metadata, PunicaWrapperCPU.add_lora_linear = update_metadata, add_lora_linear
    LoRAModelManager.activate_adapter = activate_adapter
    return True
