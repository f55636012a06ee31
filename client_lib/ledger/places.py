"""Stores by their location: a path or a URL."""

from __future__ import annotations

import os

from client_lib.ledger.redis import RedisStore
from client_lib.ledger.sqlite import SQLiteStore
from client_lib.ledger.store import LedgerStore


def is_url(place: str) -> bool:
    """Return whether a location is a Redis server rather than a file."""
    return place.startswith(("redis://", "rediss://", "unix://"))


def open_store(place: str | os.PathLike[str]) -> LedgerStore:
    """Open a Redis server's URL (``redis://``, ``rediss://``, ``unix://``) or a SQLite file.

    Raises as :class:`RedisStore` and :class:`SQLiteStore` do.
    """
    if isinstance(place, str) and is_url(place):
        return RedisStore(place)
    return SQLiteStore(place)
