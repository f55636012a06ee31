"""The processes of one local cluster: find them and end them, and no others.

The supervisor leads a session, in which the kernel keeps its descendants, even orphans. A process
that leaves the session is known by an environment variable with the cluster's random token. The
session is checked first, because processes that change their title overwrite their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

MARKER = "DEL_SERVE_LOCAL_CLUSTER"
WORKER_NODE = "cluster.local.worker"
_RESOURCE_TRACKER = "multiprocessing.resource_tracker"

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def members(token: str, session: int | None) -> Iterator[psutil.Process]:
    """Yield the living processes of the cluster with this token and session, except the caller.

    Without a session, processes that have overwritten their environment are not found.
    """
    # A cached entry may belong to an earlier process with the same number.
    psutil.process_iter.cache_clear()
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get(MARKER) == token:
                yield process
        except (psutil.Error, OSError):
            continue  # it has just ended, or belongs to another user


def is_session_of(token: str, session: int, directory: Path) -> bool:
    """Return whether a session belongs to the cluster with this token and directory.

    The system gives the id of a session again only after its last process has ended, so one process
    shows that all are the cluster's. It is known by the token in its environment or, since only
    processes that have overwritten theirs may be left, by its working directory.
    """
    place = str(directory.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and (process.environ().get(MARKER) == token or process.cwd() == place):
                return True
    return False


def end_all(token: str, session: int | None, *, timeout_s: float = 10.0) -> int:
    """Kill every process of the cluster, also those that start meanwhile; return how many are left.

    The standard library's resource trackers are spared for a while: they remove the semaphores and
    shared memory of dead processes.
    """
    began = time.monotonic()
    while True:
        found = list(members(token, session))
        spared = [one for one in found if time.monotonic() < began + 2.0 and runs(one, _RESOURCE_TRACKER)]
        for process in found:
            if process not in spared:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if not found or time.monotonic() > began + timeout_s:
            return len(found)
        psutil.wait_procs(found, timeout=0.5)


def runs(process: psutil.Process, module: str) -> bool:
    """Return whether the command line of a process names this module."""
    try:
        return any(module in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def adopt_orphans() -> None:
    """Become the parent of orphans (Linux only): not every container collects its dead."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def collect_dead() -> None:
    """Remove all dead children, adopted ones included, from the process table."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
