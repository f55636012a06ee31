"""A quicker start of vLLM's engine on CPUs, by what is safe where there is no device that a process could claim.

- vLLM starts its engine in a freshly spawned process, which imports everything (8 s on a laptop's core) only after the
  replica's own process has imported the same. Here both imports run at once: :func:`begin` starts a helper process (the
  ``forkserver`` of the standard library) that imports the engine's modules and nothing else and has a single thread;
  within :func:`used` vLLM forks its engine from there. The helper ends with the process that started it.
- Before the first start of a model class on a machine, vLLM looks at the class in yet another process, so as not to
  touch a GPU. Within :func:`used` it looks in its own.

Both replace a function of vLLM's by name. Where a release of vLLM has no function of that name, nothing is replaced and
the start is as slow as ever.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["begin", "used"]

_PRELOADED = (
    "deployments.engines.vllm.process_title",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


def begin() -> None:
    """Start importing the engine's modules in the helper process; the environment must be final by now."""
    multiprocessing.set_forkserver_preload(list(_PRELOADED))
    multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def used() -> Iterator[None]:
    """While this is entered, vLLM's engine is forked from the helper, and model classes are looked at in place."""
    with contextlib.ExitStack() as stack:
        replaced: dict[str, Callable[..., Any]] = {
            "vllm.v1.engine.utils.get_mp_context": lambda: multiprocessing.get_context("forkserver"),
            "vllm.model_executor.models.registry._run_in_subprocess": lambda function: function(),
        }
        for name, replacement in replaced.items():
            stack.enter_context(_replaced(name, replacement))
        yield


@contextlib.contextmanager
def _replaced(name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    module_name, _, attribute = name.rpartition(".")
    module = importlib.import_module(module_name)
    original = getattr(module, attribute, None)
    if original is None:
        yield
        return
    setattr(module, attribute, replacement)
    try:
        yield
    finally:
        setattr(module, attribute, original)
