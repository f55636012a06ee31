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
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PRELOADED = (
    "deployments.engines.vllm.process_title",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
)


CAUSE = "DEL_ENGINE_CAUSE"
"""Environment variable: file into which the engine's process writes why it did not start."""

_LONGEST_CAUSE = 400
# Parts of vLLM's messages, and the settings that they are about.
_ADVICE = (
    ("max seq len", "lower engine.max_model_len or raise engine.kv_cache_memory_bytes"),
    ("max_model_len", "lower engine.max_model_len or leave it out"),
    ("max_num_batched_tokens", "raise engine.max_num_batched_tokens or lower engine.max_num_seqs"),
    ("KV cache", "raise engine.kv_cache_memory_bytes"),
    ("memory", "lower engine.kv_cache_memory_bytes or engine.gpu_memory_utilization"),
    ("dtype", "change engine.dtype"),
    ("bfloat16", "change engine.dtype"),
    ("tensor parallel", "change engine.tensor_parallel_size"),
    ("block_size", "change engine.block_size"),
    ("architecture", "check the model with `delctl model check`"),
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something, with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic's first line only counts the problems.
    said = next((line for line in lines if "validation error" not in line), "")
    return f"{type(error).__name__}: {said}"[:_LONGEST_CAUSE]


def sentence_of(cause: str) -> str:
    """Return what vLLM refused as one sentence with the setting to change."""
    advice = next((words for part, words in _ADVICE if part.lower() in cause.lower()), None)
    return f"engine: vLLM refused to start: {cause.rstrip('. ')}" + (f"; {advice}" if advice else "")


@contextlib.contextmanager
def cause_of_failure() -> Iterator[Callable[[], str]]:
    """Yield a function that returns why the engine's process did not start; empty if unknown.

    vLLM only says that it failed, in the process that started it.
    """
    with tempfile.TemporaryDirectory(prefix="del-engine-") as directory:
        path = Path(directory) / "cause"
        os.environ[CAUSE] = str(path)
        try:
            yield lambda: path.read_text(encoding="utf-8") if path.exists() else ""
        finally:
            del os.environ[CAUSE]


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
