"""Adapters that are trained with a variant, with its noise and its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from del_core.bundle import Adapter
from del_core.lm.adapter import AttachedAdapter, attached, new_shape, start_from
from del_core.lm.model import BaseLM
from del_core.training.config import VariantConfig

ADAPTER_FILE = "adapter.safetensors"


@contextlib.contextmanager
def training_adapter(
    lm: BaseLM, config: VariantConfig, start: Adapter | None = None
) -> Iterator[AttachedAdapter | None]:
    """Attach an adapter of the rank in ``config`` to the LM; yield None if that is 0.

    It begins as ``start``, or without effect.
    """
    if not config.adapter_rank:
        yield None
        return
    torch.manual_seed(config.seed)
    with attached(lm.model, new_shape(lm.model, config.adapter_rank)) as adapter:
        if start is not None:
            start_from(adapter, start)
        yield adapter


def save_adapter(directory: Path, adapter: AttachedAdapter | None) -> None:
    """Write the adapter beside the variant that it was trained with."""
    if adapter is not None:
        save_file(dict(adapter.detached().tensors), directory / ADAPTER_FILE)


def load_adapter(directory: Path, lm: BaseLM, config: VariantConfig) -> Adapter | None:
    """Load what ``save_adapter`` wrote, None if the variant was trained without an adapter."""
    if not config.adapter_rank:
        return None
    tensors: Mapping[str, NDArray[Any]] = load_file(directory / ADAPTER_FILE)
    return Adapter(new_shape(lm.model, config.adapter_rank), tensors)
