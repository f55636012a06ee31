"""Log files of a local cluster, read from their end or followed as they grow.

Replicas log neither prompts nor anything that derives from them (docs/guides/observability.md).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_SESSION = "r/session_2*/logs"
PARTS = {
    "supervisor": ("supervisor.log",),
    "serve": (f"{_SESSION}/serve/*.log",),
    "replicas": (f"{_SESSION}/serve/replica_*.log",),
    "nodes": (f"{_SESSION}/gcs_server.out", f"{_SESSION}/raylet*.out", f"{_SESSION}/monitor*.log"),
}
"""Parts of a cluster and the patterns of their files in its directory."""
DEFAULT_PARTS = ("supervisor", "serve")
_POLL_S = 0.3


def log_files(directory: Path, parts: Sequence[str]) -> list[Path]:
    """Return the log files of these parts, the oldest first."""
    found = {path for part in parts for pattern in PARTS[part] for path in directory.glob(pattern)}
    return sorted(found, key=lambda path: (path.stat().st_ctime, path.name))


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=count)]


def follow(directory: Path, parts: Sequence[str], running: Callable[[], bool]) -> Iterator[tuple[Path, str]]:
    """Yield lines that are written from now on, also to new files, while ``running()``."""
    places = {path: path.stat().st_size for path in log_files(directory, parts)}
    return _follow(directory, parts, running, places)


def _follow(
    directory: Path, parts: Sequence[str], running: Callable[[], bool], places: dict[Path, int]
) -> Iterator[tuple[Path, str]]:
    more = True
    while more:
        more = running()  # before the last look, so that the last lines are seen
        for path in log_files(directory, parts):
            with path.open("rb") as file:
                file.seek(places.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # the rest comes later
                    places[path] = places.get(path, 0) + len(line)
                    yield path, line[:-1].decode("utf-8", errors="replace")
        if more:
            time.sleep(_POLL_S)
