"""The device of a stage, checked before anything is loaded, and its precision."""

from __future__ import annotations

import torch

from del_core.errors import DelError


class DeviceError(DelError):
    """A device that PyTorch does not know or that this machine does not have."""


def check_device(name: str) -> torch.device:
    """Return the device that PyTorch calls ``name``, or raise DeviceError with those there are."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # not on a device without memory, such as meta
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without CUDA
        raise DeviceError(f"device must be one of {', '.join(_devices())}, got {name!r}") from error
    return device


def _devices() -> list[str]:
    """Return the names of this machine's devices, the CPU first."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]


def products(device: torch.device | str, bf16: bool) -> torch.autocast:
    """Return a context for matrix products in bfloat16 if ``bf16``; all else stays float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
