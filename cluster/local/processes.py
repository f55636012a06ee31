"""Finding and ending the processes of one local cluster, and no others.

The cluster's supervisor leads a session of its own, and the kernel keeps what it started in that session, whoever the
parent is by now. For a process that should ever leave the session there is a second mark: an environment variable with
the cluster's random token, which every process inherits (the session comes first because processes that change their
title overwrite their environment). So orphans are found too, and other Ray clusters on the machine are never touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator

import psutil

__all__ = ["MARKER", "WORKER_NODE", "adopt_orphans", "collect_dead", "end_all", "is_worker_node", "members"]

MARKER = "DEL_SERVE_LOCAL_CLUSTER"
WORKER_NODE = "cluster.local.worker"

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def members(token: str, session: int) -> Iterator[psutil.Process]:
    """The living processes of the cluster with this token and session, without the calling process."""
    # What was kept from the last look may be of a process whose number another one has by now.
    psutil.process_iter.cache_clear()
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get(MARKER) == token:
                yield process
        except (psutil.Error, OSError):
            continue  # it ended just now, or is another user's


def end_all(token: str, session: int, *, timeout_s: float = 10.0) -> int:
    """Kill every process of the cluster, and those that they start meanwhile; returns how many are left (0).

    Nothing gets the chance to clean up but the standard library's resource trackers: they remove the semaphores and
    shared memory of processes that have died, and end by themselves when all of those have.
    """
    began = time.monotonic()
    while True:
        found = list(members(token, session))
        spared = [process for process in found if time.monotonic() < began + 2.0 and _is_resource_tracker(process)]
        for process in found:
            if process not in spared:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if not found or time.monotonic() > began + timeout_s:
            return len(found)
        psutil.wait_procs(found, timeout=0.5)


def is_worker_node(process: psutil.Process) -> bool:
    """Whether the process is the one under which a Ray node beside the head runs."""
    try:
        return WORKER_NODE in process.cmdline()
    except psutil.Error:
        return False


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent has died (Linux; elsewhere init is).

    In a container whose first process collects no dead children, they would stay in the process table for ever.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def collect_dead() -> None:
    """Take all dead children, adopted ones included, out of the process table; for a process that is about to end."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("multiprocessing.resource_tracker" in argument for argument in process.cmdline())
    except psutil.Error:
        return False
