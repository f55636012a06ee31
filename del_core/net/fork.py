"""Fork safety: locks and sockets are renewed in a child process before any of its code runs."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Renewable(Protocol):
    def after_fork(self) -> None:
        """Replace locks and sockets of the parent; no other thread runs yet."""


_registered: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renewed_after_fork(thing: _Renewable) -> None:
    """Call ``thing.after_fork()`` in every child that is forked while the object exists."""
    _registered.add(thing)


def _renew_all() -> None:
    for thing in list(_registered):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_all)
