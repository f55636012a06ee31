"""Record of the local cluster that ``delctl up`` has started, in the user's state directory.

A process is recorded with its start time, because the system gives process ids again: whoever stops
a cluster must not stop an unrelated process that has the id of one of its processes by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from del_core.errors import DelError

STATE_DIRECTORY = "DEL_STATE_DIR"
_FORMAT = 1
_START_TICKS = 19  # of the fields behind the name: proc(5) calls it field 22


class StateError(DelError):
    """The record of the local cluster cannot be read, or another command holds it."""


@dataclass(frozen=True)
class ProcessId:
    """A process of this machine: its id, its start in ticks since boot, and the boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Describe a living process. Raises ProcessLookupError."""
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return cls(pid, started, _boot())

    @property
    def alive(self) -> bool:
        """Whether this process, and not a later one with the same id, is alive."""
        return _boot() == self.boot and _started(self.pid) == self.started


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name may hold anything
    return None if state == "Z" else int(rest[_START_TICKS - 1])


@dataclass(frozen=True)
class ClusterRecord:
    """A local cluster: who keeps it, how to reach it, how to find its processes.

    Args:
        phase: starting, or running.
        keeper: the process that holds the supervisor (:mod:`cluster.local.keeper`).
        supervisor: leads the session of the cluster's processes.
        token: marks the cluster's processes (:mod:`cluster.local.processes`).
        ray_token: secret of Ray's control ports and dashboard.
        nodes: the fields of :class:`cluster.local.nodes.Nodes`.
        http_options: host and port of the HTTP proxy.
    """

    phase: str
    keeper: ProcessId
    supervisor: ProcessId
    token: str
    ray_token: str
    url: str
    dashboard_url: str
    gcs_address: str
    directory: str
    proxy: str
    nodes: dict[str, Any]
    http_options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the fields with the format's version."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any) -> ClusterRecord:
        """Read what :meth:`to_json` returned. Raises KeyError, TypeError, ValueError."""
        if not isinstance(values, dict) or values["format"] != _FORMAT:
            raise ValueError(f"format must be {_FORMAT}")
        found = {name: value for name, value in values.items() if name != "format"}
        for name in ("keeper", "supervisor"):
            found[name] = ProcessId(**found[name])
        return cls(**found)


def state_directory() -> Path:
    """Return ``DEL_STATE_DIR``, else ``del-serve`` in the user's directory for state (XDG)."""
    if chosen := os.environ.get(STATE_DIRECTORY):
        return Path(chosen)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "del-serve"


def read_record() -> ClusterRecord | None:
    """Return the recorded cluster, whether it is alive or not. Raises StateError."""
    path = _path()
    try:
        return ClusterRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} must be the record of a local cluster, got {error!r}") from None


def write_record(record: ClusterRecord) -> None:
    """Replace the record, readable for this user only, as it holds the cluster's secrets."""
    path = _path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(record.to_json(), file, indent=2)
    os.replace(fresh, path)


def remove_record(keeper: int) -> None:
    """Remove the record if it is that of the cluster which this process keeps or has kept."""
    with contextlib.suppress(StateError):
        found = read_record()
        if found is not None and found.keeper.pid == keeper:
            _path().unlink(missing_ok=True)


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Hold the state directory for a start or a stop. Raises StateError if another command does."""
    directory = state_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(f"another delctl up or down works in {directory}; wait for it") from None
        yield


def _path() -> Path:
    return state_directory() / "cluster.json"
