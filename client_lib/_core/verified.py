"""Notes of which cached files were verified, so that a start need not read the table again.

A note holds what the file system says about every file of an entry at the moment before it was verified: device,
inode, size, time of modification and time of change. Nobody can write to a file, replace it or set its time of
modification without the kernel moving the time of change on, so an entry that still looks the same holds the same
bytes. A file system's clock ticks coarsely, hence files that changed in the last two seconds are not noted yet. What a
note cannot show is a medium that loses bits by itself; whoever may write to the cache could forge a note, but could
replace this library just as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["VerifiedNotes"]

_TICKS_NS = 2_000_000_000


class VerifiedNotes:
    """The notes in one directory, a file ``<fingerprint>`` each."""

    def __init__(self, directory: Path, files: Sequence[str]) -> None:
        self._directory, self._files = directory, tuple(files)

    def state(self, entry: Path) -> str | None:
        """What the file system says about an entry's files; None if one is missing."""
        try:
            found = [os.stat(entry / name, follow_symlinks=False) for name in self._files]
        except OSError:
            return None
        return json.dumps([[s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for s in found])

    def holds(self, fingerprint: str, state: str | None) -> bool:
        """Whether this state of the entry was verified."""
        try:
            return state is not None and (self._directory / fingerprint).read_text("ascii") == state
        except (OSError, ValueError):
            return False

    def write(self, fingerprint: str, state: str | None) -> None:
        """Note that the entry was verified, ``state`` having been taken before; where that fails, nothing is noted."""
        if state is None or max(entry[4] for entry in json.loads(state)) > time.time_ns() - _TICKS_NS:
            return
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, name = tempfile.mkstemp(prefix=".new-", dir=self._directory)
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(state)
                os.replace(name, self._directory / fingerprint)
            except OSError:
                os.unlink(name)
