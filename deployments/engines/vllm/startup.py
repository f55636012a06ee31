"""Faster start of vLLM's engine on CPUs, where no process can occupy a device by importing it.

- vLLM's engine process imports everything only after the replica has imported the same. Here both
  import at the same time: :func:`begin` starts a fork server that imports the engine's modules, and
  within :func:`forked_engine` vLLM forks its engine from it. On two cores, the imports take 10 s
  instead of 18 s (docs/results/performance.md).
- vLLM inspects a model class in another process, so that the inspection cannot touch a GPU. Within
  :func:`forked_engine` it inspects the class in place.

If a release of vLLM has no function of a replaced name, the engine starts as vLLM starts it.
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


def begin() -> None:
    """Start the fork server; the environment must be final."""
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def forked_engine() -> Iterator[None]:
    """Let vLLM fork its engine from the fork server inside the context."""
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
