"""Who asks. Put your own sessions here: the rest of the backend only knows ``find_user``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class User:
    """A user of the app. ``id`` never changes: the budget belongs to it, whatever the plan."""

    id: str
    plan: str


FindUser = Callable[[str], User | None]
"""Returns the user of a bearer token, or None."""

_TUTORIAL = {"alice-token": User("alice", "free"), "bob-token": User("bob", "plus")}


def find_user(token: str) -> User | None:
    """Return a user of the tutorial."""
    return _TUTORIAL.get(token)
