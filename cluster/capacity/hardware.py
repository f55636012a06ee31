"""Accelerators with the figures of their data sheets, and prices for orientation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Accelerator:
    """What limits an engine on one device.

    Args:
        memory_gb: memory, in units of 10^9 bytes.
        bandwidth_gb_s: of that memory, in units of 10^9 bytes a second.
        tflops: dense matrix products in the weights' type, in units of 10^12 operations a second.
        price_per_hour: of one device on demand, US dollars; a rough figure, to be replaced.
        source: where the figures are from.
    """

    name: str
    memory_gb: float
    bandwidth_gb_s: float
    tflops: float
    price_per_hour: float | None
    source: str


ACCELERATORS = {
    one.name: one
    for one in (
        Accelerator("l4", 24, 300, 121, 0.8, "NVIDIA L4 data sheet"),
        Accelerator("l40s", 48, 864, 362, 1.9, "NVIDIA L40S data sheet"),
        Accelerator("a100", 80, 2039, 312, 2.5, "NVIDIA A100 80GB SXM data sheet"),
        Accelerator("h100", 80, 3350, 989, 4.0, "NVIDIA H100 SXM data sheet"),
        Accelerator("h200", 141, 4800, 989, 5.0, "NVIDIA H200 SXM data sheet"),
    )
}
"""Data-sheet figures without sparsity, in bfloat16. The prices are round figures of 2026."""
