"""Extension of vLLM's worker: code that runs in the engine's process.

vLLM appends :class:`EngineWorker` to the bases of its worker class (``worker_extension_cls``) and
creates the worker before the model is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from del_core.bundle import load_bundle
from deployments.engines.vllm.cpu_adapters import multiply_once_per_adapter
from deployments.engines.vllm.prompts import Prompts
from deployments.engines.vllm.startup import CAUSE, first_line

_HASH_KEYS = "generate_block_hash_extra_keys"


class _Cause(logging.Handler):
    """Keeps the error with which the engine's process fails, for the process that started it."""

    def emit(self, record: logging.LogRecord) -> None:
        path = os.environ.get(CAUSE)
        if path and record.exc_info and record.exc_info[1] is not None:
            with contextlib.suppress(OSError):
                Path(path).write_text(first_line(record.exc_info[1]), encoding="utf-8")


def configure_logging() -> None:
    """Send vLLM's log to standard error, at the level of ``VLLM_LOGGING_LEVEL``. Idempotent.

    Without ``VLLM_CONFIGURE_LOGGING=0``, set before, vLLM closes every handler in the process. The
    replica would lose its log file, and Serve would replace it as soon as a restarted controller
    asks for the file's name.
    """
    logger = logging.getLogger("vllm")
    logger.setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"))
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_Cause())
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        logger.addHandler(handler)


def watch_parent() -> threading.Thread | None:
    """Start a thread that ends this process with its parent; return None without a parent.

    Otherwise vLLM's engine process outlives a replica that is killed, and keeps its memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return None

    def wait() -> None:
        # The kernel closes this pipe with the parent: no polling, no missed signal.
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    thread = threading.Thread(target=wait, name="parent-watch", daemon=True)
    thread.start()
    return thread


def salt_for(shared_rows: int, secret: str) -> str:
    """Return the ``cache_salt`` of a prompt whose first rows are shared by all callers."""
    return f"{shared_rows}:{secret}"


def isolate_cache() -> bool:
    """Apply cache salts after the shared rows; return whether vLLM has the function for it.

    vLLM names a cache block by a hash over the block, all blocks before it and, in a request's
    first block, the ``cache_salt``: each caller would have its own soft prompts. Here the salt
    goes into the first block that holds anything else, on which every later block depends. Without
    that function, or with several GPUs per model (separate processes), callers stay isolated, and
    each has its own copy of the soft prompts.
    """
    from vllm.v1.core import kv_cache_utils

    original = getattr(kv_cache_utils, _HASH_KEYS, None)
    if original is None or hasattr(original, "replaces"):
        return original is not None

    def extra_keys(request: Any, start: int, end: int, media: int) -> tuple[tuple[Any, ...] | None, int]:
        keys, media = original(request, start, end, media)
        salt = request.cache_salt
        shared, separator, _ = (salt or "").partition(":")
        if not separator or not shared.isdigit():
            return keys, media
        own = [key for key in keys or () if key != ("cache_salt", salt)]
        if start <= int(shared) < end:
            own.append(("cache_salt", salt))
        return tuple(own) or None, media

    extra_keys.replaces = original  # type: ignore[attr-defined]
    # Other modules have imported the function by name.
    for module in [module for name, module in sys.modules.items() if name.startswith("vllm.")]:
        if getattr(module, _HASH_KEYS, None) is original:
            setattr(module, _HASH_KEYS, extra_keys)
    return True


class EngineWorker:
    """Base class that vLLM appends to its worker class; the replica calls its methods by name."""

    model_runner: Any
    execute_model: Any
    prompts: Prompts

    def __new__(cls, *arguments: Any, **options: Any) -> EngineWorker:
        """Prepare the process. vLLM's workers never call ``__init__`` of an appended base class."""
        configure_logging()
        watch_parent()
        isolate_cache()
        multiply_once_per_adapter()
        return super().__new__(cls)

    def look_up(self, token_ids: list[int]) -> list[list[float]]:
        """Return the rows that the model itself reads for token ids."""
        import torch

        model = self.model_runner.get_model()
        ids = torch.tensor(token_ids, dtype=torch.int64, device=self.model_runner.device)
        with torch.inference_mode():
            rows: list[list[float]] = model.embed_input_ids(ids).float().cpu().tolist()
        return rows

    def load_prompts(self, bundles: list[tuple[str, str]]) -> None:
        """Decode prompts under these bundles, (path, fingerprint), before the steps that read them.

        The replica has verified the bundles.
        """
        loaded = [load_bundle(path, verify=False) for path, _ in bundles]
        for bundle, (_, fingerprint) in zip(loaded, bundles, strict=True):
            if bundle.fingerprint != fingerprint:
                raise RuntimeError(f"bundle {bundle.path} must stay as it is while its server starts")
        self.prompts = prompts = Prompts(self, loaded)
        execute = self.execute_model

        def decode_and_execute(step: Any) -> Any:
            prompts.prepare(step)
            return execute(step)

        self.execute_model = decode_and_execute

    def decode_prompt(self, rows: bytes, columns: int) -> list[list[float]]:
        """Return the embeddings that the model reads for a prompt's rows."""
        found = self.prompts.decode(np.frombuffer(rows, np.uint8).reshape(-1, columns).copy())
        listed: list[list[float]] = found.tolist()
        return listed

    def give_ids_after_prompts(self) -> bool:
        """Let the runner take token ids in steps without prompt rows; return whether it can.

        With prompt embeddings, vLLM looks up the embeddings of generated tokens outside the model
        in every step. With ids the model looks up the same rows itself, at lower cost. Graphs are
        captured for embeddings, so this is only for models without captured graphs.
        """
        runner = self.model_runner
        batch = getattr(runner, "input_batch", None)
        if not all(hasattr(runner, name) for name in ("_prepare_inputs", "_preprocess", "enable_prompt_embeds")):
            return False
        if not all(hasattr(batch, name) for name in ("req_prompt_embeds", "num_computed_tokens_cpu")):
            return False
        if not runner.enable_prompt_embeds or getattr(runner, "supports_mm_inputs", False):
            return False
        prepare_inputs, preprocess = runner._prepare_inputs, runner._preprocess

        def prepare(*arguments: Any, **options: Any) -> Any:
            batch = runner.input_batch
            embeddings = batch.req_prompt_embeds
            computed = batch.num_computed_tokens_cpu
            if any(computed[index] < rows.shape[0] for index, rows in embeddings.items()):
                return prepare_inputs(*arguments, **options)
            # The prompts are restored at once: the batch moves them when requests come and go.
            batch.req_prompt_embeds = {}
            runner.enable_prompt_embeds = False
            try:
                return prepare_inputs(*arguments, **options)
            except BaseException:
                runner.enable_prompt_embeds = True
                raise
            finally:
                batch.req_prompt_embeds = embeddings

        def give(*arguments: Any, **options: Any) -> Any:
            try:
                return preprocess(*arguments, **options)
            finally:
                runner.enable_prompt_embeds = True

        runner._prepare_inputs, runner._preprocess = prepare, give
        return True
