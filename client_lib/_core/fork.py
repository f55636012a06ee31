"""Fork safety: what holds locks or sockets is made anew in a child process, before any of its code runs.

A lock may be held at the moment of a fork by a thread that the child does not have, and a socket that two processes
read from serves neither. Objects register here; in a child each of them is told once, while it has one thread only.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["renewed_after_fork"]


class _Renewable(Protocol):
    def after_fork(self) -> None:
        """Let go of what belongs to the parent; called in the child, where nothing else runs yet."""


_registered: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renewed_after_fork(thing: _Renewable) -> None:
    """Have ``thing.after_fork()`` called in every child that is forked while it exists."""
    _registered.add(thing)


def _renew_all() -> None:
    for thing in list(_registered):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_all)
