"""What this project adds to vLLM's worker, inside the engine's process.

With prompt embeddings enabled, vLLM looks the embeddings of generated tokens up outside the model in every step, after
it has gone through all requests for prompt rows. Most steps have none: every request has had its prompt computed. In
such a step the model is given the token ids, as it is for prompts of ids, so that prompts of embeddings cost no more.
The model looks up the same rows itself, so the numbers are the same.
"""

from __future__ import annotations

from typing import Any

from deployments.engines.vllm.cache_isolation import EngineExtension

__all__ = ["EngineWorker", "give_ids_after_prompts"]


class EngineWorker(EngineExtension):
    """Mixed into vLLM's worker, by ``worker_extension_cls``; its methods are called from the replica by name."""

    model_runner: Any

    def give_ids_after_prompts(self) -> bool:
        """See the module; whether this release of vLLM has what it takes."""
        return give_ids_after_prompts(self.model_runner)


def give_ids_after_prompts(runner: Any) -> bool:
    """Let ``runner`` (a GPUModelRunner) take ids in steps without prompt rows; false if it is made differently.

    Only for models that run without captured graphs, which are made for embeddings alone.
    """
    batch = getattr(runner, "input_batch", None)
    if not all(hasattr(runner, name) for name in ("_prepare_inputs", "_preprocess", "enable_prompt_embeds")):
        return False
    if not all(hasattr(batch, name) for name in ("req_prompt_embeds", "num_computed_tokens_cpu")):
        return False
    prepare_inputs, preprocess = runner._prepare_inputs, runner._preprocess
    if not runner.enable_prompt_embeds or getattr(runner, "supports_mm_inputs", False):
        return False

    def prepare(*arguments: Any, **options: Any) -> Any:
        batch = runner.input_batch
        embeddings = batch.req_prompt_embeds
        computed = batch.num_computed_tokens_cpu
        if any(computed[index] < rows.shape[0] for index, rows in embeddings.items()):
            return prepare_inputs(*arguments, **options)
        # The batch gets its prompts back at once: it moves them along when requests come and go.
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
