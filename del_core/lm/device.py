"""The device that a stage computes on, checked before anything is loaded."""

from __future__ import annotations

import torch

from del_core.errors import DelError

__all__ = ["DeviceError", "check_device"]


class DeviceError(DelError):
    """A device that PyTorch does not know or that this machine does not have."""


def check_device(name: str) -> torch.device:
    """The device that PyTorch calls ``name``.

    Raises:
        DeviceError: if there is none; the message names those that there are.
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # a device without memory, such as meta, is none to compute on
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without CUDA
        raise DeviceError(f"device: {name!r} is not on this machine; allowed: {', '.join(_devices())}") from error
    return device


def _devices() -> list[str]:
    """Names of what PyTorch can compute on here, the CPU first."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()))]
