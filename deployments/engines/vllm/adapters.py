"""Adapters of variants in vLLM: each is one LoRA of its multi-LoRA support, loaded at start."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from del_core.bundle import Adapter
from del_core.lm.peft_files import reserved_rank, write_peft
from deployments.engines.base import EngineStartError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM


def adapter_arguments(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """Return the arguments of the engine that serves ``adapters`` beside the model as it is."""
    if not adapters:
        return {}
    return {
        "enable_lora": True,
        # All may be used in one step. On CPUs, vLLM (0.32) gives the last place to requests without
        # an adapter in a batch with others, so that place must stay empty.
        "max_loras": len(adapters) + 1,
        "max_cpu_loras": len(adapters) + 1,  # none is ever loaded again
        # Without the embedding layer: where prompts are embeddings, it does not read all tokens.
        "lora_target_modules": sorted({name for one in adapters.values() for name in one.shape.modules}),
        "max_lora_rank": reserved_rank(adapters.values()),
    }


async def load_adapters(llm: AsyncLLM, adapters: Mapping[str, Adapter]) -> dict[str, LoRARequest]:
    """Load ``adapters`` into the engine; return what a request names them by.

    The files that vLLM reads them from exist only meanwhile, in a directory of this user alone.
    EngineStartError is raised if vLLM refuses one; layers that the model does not have are not
    refused, so they are checked before.
    """
    from vllm.lora.request import LoRARequest

    loaded: dict[str, LoRARequest] = {}
    with tempfile.TemporaryDirectory(prefix="del-adapters-") as place:
        for number, (name, adapter) in enumerate(adapters.items(), start=1):
            directory = Path(place) / str(number)
            write_peft(directory, adapter)
            request = LoRARequest(name, number, str(directory))
            try:
                await llm.add_lora(request)
                await llm.pin_lora(number)
            except Exception as error:
                raise EngineStartError(f"adapter {name} must fit the model, but vLLM refuses it: {error}") from error
            loaded[name] = request
    return loaded
