"""The engine that runs in production: vLLM's AsyncLLM with prompt embeddings.

What vLLM is told, and why (measured with 0.32):

- The whole prompt goes in as embeddings. Mixing token ids and embeddings has an open wrong-KV bug; penalties with
  embeddings kill the engine; so neither is ever passed on, and every tensor is built from validated integers, since a
  NaN is accepted and a wrong width kills the engine.
- No tokeniser is loaded and nothing is detokenised there: the service does that, and knows the end-of-text ids.
- ``block_size`` has to divide the soft prompts' length, or their keys and values are computed for every request.
- The environment is set before vllm is imported, as it reads it then. Statistics and request logging are off.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deployments.engines.base import Delta, EngineDeadError, EngineSampling
from deployments.engines.vllm import logging as _engine_logging
from deployments.engines.vllm import startup as _quick_start
from deployments.engines.vllm.cache_isolation import salt_for
from deployments.engines.vllm.frontend import Frontend
from deployments.settings import EngineSettings

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

__all__ = ["VllmEngine", "engine_environment"]

_GREEDY_BELOW = 1e-5
"""Temperatures below are greedy for vLLM."""


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """The environment variables that vLLM and the numerical libraries have to see before they are loaded."""
    return {
        "OMP_NUM_THREADS": str(settings.threads),
        # One process fewer: the worker runs inside the engine's process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The default binds every engine of a node to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": settings.log_level,
        **_engine_logging.ENVIRONMENT,
        # No plug-ins that happen to be installed.
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _is_cpu_build() -> bool:
    """Whether the vLLM installed here is the one for CPUs; said without importing it."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _draw(sampling: EngineSampling) -> dict[str, Any]:
    """The fields of SamplingParams that say how a token is drawn."""
    if sampling.seed is None or sampling.temperature < _GREEDY_BELOW:
        return {"temperature": sampling.temperature, "top_p": sampling.top_p}
    from deployments.engines.vllm.sampling import extra_args

    arguments = extra_args(sampling.seed, sampling.position, sampling.temperature, sampling.top_p)
    return {"temperature": 0.0, "extra_args": arguments}


class VllmEngine:
    """:class:`deployments.engines.base.Engine` over vLLM. The model's process is a child of this one and ends with
    it."""

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        self._model = model
        self._settings = settings
        self._llm: AsyncLLM | None = None
        self._frontend: Frontend | None = None
        self.gives_ids = False
        """Whether steps after the prompts take token ids (:mod:`deployments.engines.vllm.worker`)."""
        self._tensor: Callable[[NDArray[np.float32]], Any] = lambda embeddings: embeddings
        self._context_length = 0

    @property
    def context_length(self) -> int:
        """See ``Engine``."""
        return self._context_length

    async def start(self) -> None:
        """See ``Engine``. The loading runs in a thread, so that the event loop goes on answering."""
        os.environ.update(engine_environment(self._settings))
        self._llm = llm = await asyncio.to_thread(self._load)
        self._frontend = Frontend(llm)
        await self._frontend.start()
        if self._settings.enforce_eager:
            self.gives_ids = all(await llm.collective_rpc("give_ids_after_prompts"))

    def _load(self) -> AsyncLLM:
        quick = self._settings.quick_start and self._settings.threads == 1 and _is_cpu_build()
        if quick:
            _quick_start.begin()
        _engine_logging.configure()
        import torch
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        settings = self._settings
        optional = {
            "max_model_len": settings.max_model_len,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "kv_cache_memory_bytes": settings.kv_cache_memory_bytes,
        }
        arguments = AsyncEngineArgs(
            model=str(self._model),
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            dtype=settings.dtype,
            enforce_eager=settings.enforce_eager,
            block_size=settings.block_size,
            max_num_seqs=settings.max_num_seqs,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            tensor_parallel_size=settings.tensor_parallel_size,
            enable_prefix_caching=settings.prefix_caching,
            worker_extension_cls="deployments.engines.vllm.worker.EngineWorker",
            logits_processors=["deployments.engines.vllm.sampling:SeededSampling"],
            disable_log_stats=True,
            enable_log_requests=False,
            **{name: value for name, value in optional.items() if value is not None},
        )
        with _quick_start.used() if quick else contextlib.nullcontext():
            llm = AsyncLLM.from_engine_args(arguments)
        dtype = llm.model_config.dtype
        self._tensor = lambda embeddings: torch.from_numpy(embeddings).to(dtype)
        self._context_length = int(llm.model_config.max_model_len)
        return llm

    async def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32],
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
    ) -> AsyncGenerator[Delta, None]:
        """See ``Engine``."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            **_draw(sampling),
            stop_token_ids=list(sampling.stop_token_ids),
            # The end-of-text ids are among the stop ids where they apply.
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            # They are this request's own.
            skip_clone=True,
        )
        prompt: dict[str, Any] = {"type": "embeds", "prompt_embeds": self._tensor(embeddings)}
        if cache_salt is not None:
            prompt["cache_salt"] = salt_for(shared_rows, cache_salt)
        deltas = self._started().generate(request_id, prompt, parameters, sampling)
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def abort(self, request_id: str) -> None:
        """See ``Engine``."""
        if self._frontend is not None:
            await self._frontend.abort(request_id)

    async def check_health(self) -> None:
        """See ``Engine``."""
        if self._started().dead:
            raise EngineDeadError("the engine has stopped")

    async def shutdown(self) -> None:
        """See ``Engine``."""
        frontend, self._frontend = self._frontend, None
        llm, self._llm = self._llm, None
        if frontend is not None:
            await frontend.stop()
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)

    def _started(self) -> Frontend:
        if self._frontend is None:
            raise EngineDeadError("the engine has not been started, or has stopped")
        return self._frontend
