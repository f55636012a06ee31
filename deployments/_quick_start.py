"""A quicker start of vLLM's engine on CPUs: its process is forked from one that has imported vLLM already.

vLLM starts its engine in a freshly spawned process, which imports everything (8 s on a laptop's core) only after the
replica's own process has imported the same. Here both imports run at once: :func:`begin` starts a helper process (the
``forkserver`` of the standard library) that imports the engine's modules and nothing else, has a single thread and
never touches a device; within :func:`used` vLLM forks its engine from there. The helper ends with the process that
started it. If vLLM's internals should change, :func:`used` changes nothing and the engine is spawned as ever.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
from collections.abc import Iterator

__all__ = ["begin", "used"]

_ENGINE_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


def begin() -> None:
    """Start importing the engine's modules in the helper process; the environment must be final by now."""
    multiprocessing.set_forkserver_preload(list(_ENGINE_MODULES))
    multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def used() -> Iterator[None]:
    """While this is entered, processes that vLLM's engine client starts are forked from the helper process."""
    module = importlib.import_module("vllm.v1.engine.utils")
    original = getattr(module, "get_mp_context", None)
    if original is None:
        yield
        return
    module.get_mp_context = lambda: multiprocessing.get_context("forkserver")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.get_mp_context = original  # type: ignore[attr-defined]
