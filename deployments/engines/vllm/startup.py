"""Faster start of vLLM's engine on CPUs, where no process can occupy a device by importing it.

- vLLM starts its engine in a spawned process, which imports everything only after the replica has
  imported the same (8 s on a laptop's core). Here both imports run at the same time: :func:`begin`
  starts a helper process (the standard library's fork server) that imports the engine's modules in
  one thread, and within :func:`forked_engine` vLLM forks its engine from the helper. On two cores,
  the imports take 10 s instead of 18 s (docs/results/performance.md).
- Before the first start of a model class on a machine, vLLM inspects the class in another process,
  so that the inspection cannot touch a GPU. Within :func:`forked_engine` it inspects the class in
  place.

Both replace a function of vLLM by name. If a release has no function of that name, nothing is
replaced and the engine starts as vLLM starts it.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
from collections.abc import Callable, Iterator
from typing import Any

PRELOADED = (
    "deployments.engines.vllm.process_title",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)
"""Modules that the helper process imports, in this order."""


def begin() -> None:
    """Start the helper process; the environment must be final."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def forked_engine() -> Iterator[None]:
    """Let vLLM fork its engine from the helper process inside the context."""
    replacements: dict[str, Callable[..., Any]] = {
        "vllm.v1.engine.utils.get_mp_context": lambda: multiprocessing.get_context("forkserver"),
        "vllm.model_executor.models.registry._run_in_subprocess": lambda function: function(),
    }
    with contextlib.ExitStack() as stack:
        for name, replacement in replacements.items():
            module_name, _, attribute = name.rpartition(".")
            module = importlib.import_module(module_name)
            original = getattr(module, attribute, None)
            if original is not None:
                setattr(module, attribute, replacement)
                stack.callback(setattr, module, attribute, original)
        yield
