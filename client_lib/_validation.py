"""Checks of arguments whose annotations a caller without a type checker may not have kept."""

from __future__ import annotations

from client_lib.errors import InvalidRequest

__all__ = ["check_integer", "check_seconds", "invalid"]


def invalid(name: str, found: str, allowed: str) -> InvalidRequest:
    """The error for a field; ``found`` must not hold anything of a prompt."""
    return InvalidRequest(f"{name}: {found}; allowed: {allowed}", field=name)


def check_integer(name: str, value: object, low: int, high: int) -> None:
    """Raise :class:`InvalidRequest` unless the value is an integer from low to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise invalid(name, repr(value), f"an integer from {low} to {high}")


def check_seconds(name: str, value: object) -> None:
    """Raise :class:`InvalidRequest` unless the value is a positive, finite number of seconds or None."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise invalid(name, repr(value), "a positive number of seconds, or None")
