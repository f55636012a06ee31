"""Ends an engine's process when the process that started it is gone.

vLLM runs its engine in a process of its own, and one whose parent was killed lives on, with its memory, for ever. The
engine is told to mix a class over :class:`ParentGuard` into its worker class; importing this module, which it does
before it loads the model, is all that is wanted; it sets up that process's logging as well. Imports nothing heavy.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading

from deployments.engines.vllm import logging as _engine_logging

__all__ = ["ParentGuard", "watch_parent"]


class ParentGuard:
    """Adds nothing to the worker; vLLM's ``worker_extension_cls`` has to name a class."""


def watch_parent() -> threading.Thread | None:
    """Start the thread that ends this process when its parent has ended; None in a process without such a parent."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return None
    thread = threading.Thread(target=_wait, args=(parent.sentinel,), name="parent-guard", daemon=True)
    thread.start()
    return thread


def _wait(sentinel: int) -> None:
    # The sentinel is a pipe that the kernel closes with the parent, however it ended: no polling, no signal to miss.
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


_engine_logging.configure()
watch_parent()
