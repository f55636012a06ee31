"""Registries of kinds: decoders, attacks, mechanisms, engines.

A kind is one module that registers itself when it is imported. Another distribution adds kinds by
an entry point in the group ``del_serve.plugins`` whose value is a module to import. A registry
imports these modules when it is first asked for an unknown name or for all names, in every process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

__all__ = ["PLUGIN_GROUP", "Registry", "load_plugins"]

PLUGIN_GROUP = "del_serve.plugins"

T = TypeVar("T")

_lock = threading.RLock()
_loaded = False


def load_plugins() -> None:
    """Import the modules of the entry points in :data:`PLUGIN_GROUP`, once for each process."""
    global _loaded
    with _lock:
        if not _loaded:
            _loaded = True  # before the imports, which may ask a registry for its names
            for entry_point in metadata.entry_points(group=PLUGIN_GROUP):
                entry_point.load()


class Registry(Mapping[str, T], Generic[T]):
    """Kinds of one thing by name, in order of registration.

    A missing name raises ``KeyError`` after the plugins were loaded; :meth:`find` raises
    ``ValueError`` with the known names. ``what`` is the thing in the singular for messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._kinds: dict[str, T] = {}

    def register(self, name: str, kind: T) -> T:
        """Add a kind and return it; ValueError if the name is taken by another kind."""
        if self._kinds.setdefault(name, kind) is not kind:
            raise ValueError(f"{self.what} must have a name that is not registered yet, got {name!r}")
        return kind

    def find(self, name: str, of: str = "") -> T:
        """Return the kind of this name, or raise ValueError with the known names.

        ``of`` follows the thing in the message: whose kind it is.
        """
        try:
            return self[name]
        except KeyError:
            raise ValueError(
                f"{self.what}{of} must be one of {', '.join(self._kinds)}, got {name!r}; "
                f"an installed plugin can register others (entry point group {PLUGIN_GROUP})"
            ) from None

    def __getitem__(self, name: str) -> T:
        if name not in self._kinds:
            load_plugins()
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(tuple(self._kinds))

    def __len__(self) -> int:
        load_plugins()
        return len(self._kinds)
