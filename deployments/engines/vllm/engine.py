"""The production engine: vLLM's AsyncLLM with prompt embeddings.

Constraints of vLLM (0.32) that this module respects:

- Prompts are embeddings throughout, made in the engine's process (``prompts``) from validated
  integers: vLLM accepts NaN and stops on a wrong width. Mixed token ids and embeddings can use
  wrong keys and values (an open bug), and vLLM's penalties with embeddings stop the engine, so
  neither is ever passed on (``adjustment`` has penalties of its own).
- ``block_size`` must divide the length of the soft prompts, or they are computed for every request.
- vLLM reads its environment when it is imported, so it is set before.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from del_core.bundle import Adapter, Bundle
from deployments.engines.base import (
    ENGINES,
    Delta,
    EncodedPrompt,
    EngineDeadError,
    EngineKind,
    EngineSampling,
    EngineSettings,
    EngineStartError,
    LookUp,
)
from deployments.engines.vllm import startup
from deployments.engines.vllm.adapters import adapter_arguments, load_adapters
from deployments.engines.vllm.frontend import Frontend
from deployments.engines.vllm.prompts import RowFormat
from deployments.engines.vllm.worker import configure_logging, salt_for

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


_FITTED = -1  # vLLM's max_model_len for the model's limit, or less if the KV cache holds less


class VllmSettings(EngineSettings):
    """Settings of the vLLM engine of one replica."""

    kind: Literal["vllm"] = "vllm"
    """Kind of engine."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the model; "auto" is the type of its weights."""
    block_size: Literal[16, 32] = 32
    """Tokens per block of the KV cache; a divisor of the length of every soft prompt."""
    kv_cache_memory_bytes: int | None = Field(default=256 * 1024 * 1024, ge=1024 * 1024)
    """Size of the KV cache; null means what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the device's memory for the engine if ``kv_cache_memory_bytes`` is null."""
    max_num_batched_tokens: int | None = Field(default=None, ge=64)
    """Largest number of tokens that one step computes; null means vLLM's default."""
    enforce_eager: bool = True
    """Skip compilation and graph capture: faster start, less memory, slower steps on a GPU."""
    prefix_caching: bool = True
    """Cache keys and values of prompt prefixes, in particular of the soft prompts."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs that share one model."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads of the numerical libraries in each process of a replica (OMP_NUM_THREADS)."""
    quick_start: bool = True
    """On CPUs with one thread: import vLLM in both processes of a replica at the same time."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "WARNING"
    """Level of vLLM's log, which never holds prompts."""


_NOT_OF_VLLM = {"kind", "prefix_caching", "threads", "quick_start", "log_level"}


def engine_environment(settings: VllmSettings) -> dict[str, str]:
    """Return the environment variables of vLLM's processes under these settings."""
    # vLLM compiles a few functions even without compilation of the model, the one that ranks log
    # probabilities at the first request that wants them. On a CPU this needs a C++ compiler, and
    # every stream waits for it.
    compiled = {"TORCH_COMPILE_DISABLE": "1"} if settings.enforce_eager and is_cpu_build() else {}
    return {
        **compiled,
        "OMP_NUM_THREADS": str(settings.threads),
        # One process fewer: the worker runs inside the engine's process.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # By default every engine of a node is bound to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": settings.log_level,
        "VLLM_CONFIGURE_LOGGING": "0",  # see configure_logging
        # No vLLM plugins that happen to be installed.
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def is_cpu_build() -> bool:
    """Return whether vLLM is the package built for CPUs."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class VllmEngine:
    """``Engine`` over vLLM; the model runs in a child process."""

    def __init__(self, model: Path, settings: VllmSettings) -> None:
        self._model = model
        self._settings = settings
        self._llm: AsyncLLM | None = None
        self._frontend: Frontend | None = None
        self.gives_ids = False
        """Whether steps without prompts take token ids (see ``EngineWorker``)."""
        self._tensor: Callable[[NDArray[np.float32]], Any] = lambda embeddings: embeddings
        self._context_length = 0
        self._adapters: dict[str, Adapter] = {}
        self._bundles: list[Bundle] = []
        self._format = RowFormat(())
        self._loaded: dict[str, LoRARequest] = {}

    @property
    def context_length(self) -> int:
        return self._context_length

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        self._adapters[name] = adapter

    def add_bundle(self, bundle: Bundle) -> None:
        self._bundles.append(bundle)

    async def start(self) -> None:
        os.environ.update(engine_environment(self._settings))
        self._llm = llm = await asyncio.to_thread(self._load)
        try:
            self._frontend = Frontend(llm)
            await self._frontend.start()
            self._loaded = await load_adapters(llm, self._adapters)
            self._format = RowFormat(self._bundles)
            places = [(str(bundle.path.resolve()), bundle.fingerprint) for bundle in self._bundles]
            await llm.collective_rpc("load_prompts", args=(places,))
            if self._settings.enforce_eager:
                self.gives_ids = all(await llm.collective_rpc("give_ids_after_prompts"))
        except BaseException:
            await self.shutdown()  # nobody else stops an engine that has not started
            raise

    async def look_up(self, token_ids: Sequence[int]) -> LookUp | None:
        self._started()
        assert self._llm is not None
        rows = (await self._llm.collective_rpc("look_up", args=(list(token_ids),)))[0]
        return LookUp(np.array(rows, dtype=np.float32), self._dtype)

    async def decode(self, prompt: EncodedPrompt) -> LookUp:
        self._started()
        assert self._llm is not None
        rows = self._format.encode(prompt)
        found = (await self._llm.collective_rpc("decode_prompt", args=(rows.tobytes(), rows.shape[1])))[0]
        return LookUp(np.array(found, dtype=np.float32), self._dtype)

    @property
    def _dtype(self) -> str:
        assert self._llm is not None
        return str(self._llm.model_config.dtype).removeprefix("torch.")

    def _load(self) -> AsyncLLM:
        # The cause is known in another process, and the fork server takes its environment now.
        with startup.cause_of_failure() as cause:
            try:
                return self._load_model()
            except Exception as error:
                raise EngineStartError(startup.sentence_of(cause() or startup.first_line(error))) from error

    def _load_model(self) -> AsyncLLM:
        settings = self._settings
        quick = settings.quick_start and settings.threads == 1 and is_cpu_build()
        if quick:
            startup.begin()
        configure_logging()
        import torch
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # The other fields have vLLM's own names; null means vLLM's default, except for the context.
        named = {"max_model_len": _FITTED, **settings.model_dump(exclude=_NOT_OF_VLLM, exclude_none=True)}
        arguments = AsyncEngineArgs(
            model=str(self._model),
            skip_tokenizer_init=True,
            enable_prompt_embeds=True,
            enable_prefix_caching=settings.prefix_caching,
            worker_extension_cls="deployments.engines.vllm.worker.EngineWorker",
            # In this order: draws follow the adjusted logits.
            logits_processors=[
                "deployments.engines.vllm.adjustment:AdjustedLogits",
                "deployments.engines.vllm.sampling:SeededSampling",
            ],
            disable_log_stats=True,
            enable_log_requests=False,
            **adapter_arguments(self._adapters),
            **named,
        )
        with startup.forked_engine() if quick else contextlib.nullcontext():
            llm = AsyncLLM.from_engine_args(arguments)
        dtype = llm.model_config.dtype
        self._tensor = lambda embeddings: torch.from_numpy(embeddings).to(dtype)
        self._context_length = int(llm.model_config.max_model_len)
        return llm

    async def generate(
        self,
        request_id: str,
        embeddings: NDArray[np.float32] | EncodedPrompt,
        sampling: EngineSampling,
        *,
        cache_salt: str | None = None,
        shared_rows: int = 0,
        adapter: str | None = None,
    ) -> AsyncGenerator[Delta, None]:
        from deployments.engines.vllm.sampling import sampling_params

        if isinstance(embeddings, EncodedPrompt):
            import torch

            tensor: Any = torch.from_numpy(self._format.encode(embeddings))
        else:
            tensor = self._tensor(embeddings)
        prompt: dict[str, Any] = {"type": "embeds", "prompt_embeds": tensor}
        if cache_salt is not None:
            prompt["cache_salt"] = salt_for(shared_rows, cache_salt)
        lora = None if adapter is None else self._loaded[adapter]
        deltas = self._started().generate(request_id, prompt, sampling_params(sampling), sampling, lora)
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                yield delta

    async def check_health(self) -> None:
        if self._started().dead:
            raise EngineDeadError("the engine has stopped")

    async def shutdown(self) -> None:
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


ENGINES.register("vllm", EngineKind(VllmSettings, VllmEngine))
