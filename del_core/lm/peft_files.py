"""The files of ``peft`` for an adapter, which vLLM and other servers read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.numpy import save_file

from del_core.bundle import Adapter

__all__ = ["reserved_rank", "write_peft"]

_RANKS = (8, 16, 32, 64, 128, 256)  # that vLLM reserves memory for


def reserved_rank(adapters: Iterable[Adapter]) -> int:
    """Return the smallest rank for which vLLM reserves memory and that holds all adapters."""
    largest = max(adapter.shape.rank for adapter in adapters)
    return next(rank for rank in _RANKS if rank >= largest)


def write_peft(directory: Path, adapter: Adapter) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` into a new directory."""
    directory.mkdir(parents=True)
    shape = adapter.shape
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": list(shape.modules),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(dict(adapter.tensors), directory / "adapter_model.safetensors")
