"""Checks of arguments; a failure is a ValueError that names the argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise ValueError unless ``value`` is an int, no bool, in low..high (None: no limit)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= low and (high is None or value <= high):
        return
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")


def check_number(name: str, value: object, low: float, high: float, *, open_low: bool, open_high: bool) -> None:
    """Raise ValueError unless ``value`` is a number between the limits; ``open_`` excludes one."""
    if isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool):
        above = low < value if open_low else low <= value
        below = value < high if open_high else value <= high
        if above and below:
            return
    left, right = "(" if open_low else "[", ")" if open_high or high == math.inf else "]"
    raise ValueError(f"{name} must be a number in {left}{low:g}, {high:g}{right}, got {value!r}")


def check_array(name: str, value: object, kind: type[Any]) -> None:
    """Raise ValueError, without contents, unless ``value`` is an array of numpy type ``kind``."""
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, kind):
        return
    found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    raise ValueError(f"{name} must be a numpy array of {kind.__name__}, got {found}")
