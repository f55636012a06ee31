"""Mixed precision: matrix products in bfloat16, parameters, optimizer and losses in float32."""

from __future__ import annotations

import torch


def products(device: torch.device | str, bf16: bool) -> torch.autocast:
    """Return a context that computes matrix products in bfloat16 if ``bf16``."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
