"""The replica's side of vLLM's engine process: requests in, tokens out in batches.

AsyncLLM makes an output object, a queue entry and a task switch for every token of every request,
which costs a replica more than all its other work for a completion. Here a step appends its token
ids to the lists of their requests, and a reader is woken only when an event is due. AsyncLLM still
starts the engine, prepares the requests and watches the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from del_core.wire import LEAST_LOGPROB, TokenLogprobs
from deployments.engines.base import Delta, EngineDeadError, EngineSampling, FinishReason

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.outputs import LogprobsLists


class _Output:
    """Generated tokens of one request that have not been read."""

    def __init__(self, sampling: EngineSampling) -> None:
        self._loop = asyncio.get_running_loop()
        self._gather_tokens = sampling.gather_tokens
        self._gather_s = sampling.gather_s
        self._begun = not sampling.incremental
        if not sampling.incremental:
            self._gather_tokens, self._gather_s = sampling.max_tokens + 1, None
        self.cached_rows: int | None = None
        """Prompt rows that the engine's cache held; known with the first token."""
        self._tokens: list[int] = []
        self._top = sampling.logprobs
        self._logprobs: list[TokenLogprobs] = []
        self._reason: FinishReason | None = None
        self._error = False
        self._due = False
        self._reader: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def finished(self) -> bool:
        return self._reason is not None or self._error

    def push(self, token_ids: list[int], reason: FinishReason | None, logprobs: LogprobsLists | None = None) -> None:
        """Append new tokens, with the finish reason if they are the last ones."""
        self._tokens += token_ids
        if self._top is not None and logprobs is not None:
            self._logprobs += _logprobs(logprobs, len(token_ids), self._top)
        self._reason = reason
        if reason is not None or not self._begun or len(self._tokens) >= self._gather_tokens:
            self._begun = True
            self._wake()
        elif self._timer is None and self._gather_s is not None and not self._due:
            self._timer = self._loop.call_later(self._gather_s, self._wake)

    def fail(self) -> None:
        self._error = True
        self._wake()

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = True
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def read(self) -> Delta:
        """Return the next tokens when they are due. Raises EngineDeadError."""
        if not self._due:
            self._reader = self._loop.create_future()
            await self._reader
        self._due = False
        if self._error:
            raise EngineDeadError("the engine has stopped")
        token_ids, self._tokens = tuple(self._tokens), []
        logprobs = None
        if self._top is not None:
            logprobs, self._logprobs = tuple(self._logprobs), []
        return Delta(token_ids, self._reason, self.cached_rows, gathered=self._gather_tokens > 1, logprobs=logprobs)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _logprobs(lists: LogprobsLists, tokens: int, most: int) -> list[TokenLogprobs]:
    """Return those of the first tokens of a step; a row has the sampled token, then the best ones.

    A row may be longer than was asked for: the batch has one length.
    """
    found = []
    for ids, values in zip(lists.logprob_token_ids[:tokens].tolist(), lists.logprobs[:tokens].tolist(), strict=True):
        # A probability of 0 has no logarithm in JSON.
        bounded = [min(0.0, max(LEAST_LOGPROB, value)) for value in values]
        found.append(TokenLogprobs(bounded[0], tuple(zip(ids[1 : most + 1], bounded[1 : most + 1], strict=True))))
    return found


class Frontend:
    """Connection to the engine process of an AsyncLLM that was made outside any event loop."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._core = llm.engine_core
        self._outputs: dict[str, _Output] = {}
        self._tasks: tuple[Any, ...] = ()
        self._receiver: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start receiving; call once, in the event loop that makes the requests."""
        self._receiver = asyncio.create_task(self._receive(), name="engine-outputs")
        self._tasks = tuple(await self._llm.get_supported_tasks())

    @property
    def dead(self) -> bool:
        return self._llm.errored or (self._receiver is not None and self._receiver.done())

    async def generate(
        self,
        request_id: str,
        prompt: Any,
        parameters: SamplingParams,
        sampling: EngineSampling,
        lora: LoRARequest | None = None,
    ) -> AsyncGenerator[Delta, None]:
        """Generate as ``Engine.generate`` does. Raises EngineDeadError."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        request = self._llm.input_processor.process_inputs(
            request_id, prompt, parameters, self._tasks, lora_request=lora
        )
        # The id is already unique; AsyncLLM would append random characters to it.
        request.external_req_id = request_id
        output = _Output(sampling)
        self._outputs[request_id] = output
        sent = False
        try:
            if self.dead:
                raise EngineDeadError("the engine has stopped")
            sent = True
            await self._core.add_request_async(request)
            delta = Delta(())
            while delta.finish_reason is None:
                delta = await output.read()
                yield delta
        except VllmEngineDeadError:
            raise EngineDeadError("the engine has stopped") from None
        finally:
            output.close()
            self._outputs.pop(request_id, None)
            if sent and not output.finished and not self.dead:
                await self._core.abort_requests_async([request_id])

    async def _receive(self) -> None:
        from vllm.v1.engine import FinishReason as VllmReason

        reasons: dict[Any, FinishReason | None] = {None: None, VllmReason.STOP: "stop", VllmReason.LENGTH: "length"}
        try:
            while True:
                step = await self._core.get_output_async()
                for one in step.outputs:
                    output = self._outputs.get(one.request_id)
                    if output is None:
                        continue
                    if one.prefill_stats is not None:
                        output.cached_rows = one.prefill_stats.num_cached_tokens
                    if one.finish_reason in reasons:
                        output.push(one.new_token_ids, reasons[one.finish_reason], one.new_logprobs)
                    else:
                        # The engine abandons a request ("abort", "error") only when it stops.
                        output.fail()
        finally:
            for output in tuple(self._outputs.values()):
                output.fail()

    async def stop(self) -> None:
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.wait((self._receiver,))
            if not self._receiver.cancelled():
                self._receiver.exception()  # retrieved; every request has been told that the engine stopped
