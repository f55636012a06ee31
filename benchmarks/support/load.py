"""The load generator, a program that reads lines of JSON: ``python -m benchmarks.support.load``.

    first line      {"bundle", "variant", "model", "engine"}; with ``engine`` (its settings) the
                    program starts the engine inside itself and is a system under test, without
                    it generates load for HTTP servers; ``variant`` is that of rounds without one
    further lines   a :class:`Round`: the program answers {"prepared": true}, waits for a line,
                    works, and answers with the figures

The seed of the round determines the prompts, the same for every system: token ids after as many
ids as the soft prompt has rows (for vLLM's own server), their counts in a frame (for the
application), their codes in a request of the client (for vLLM's server with an exported model), or
the embeddings decoded from those counts (for the engine itself). No prompt occurs twice, so a
system finds no more than the common beginning in its cache.

The kind ``client`` sends the codes with ``client_lib.AsyncClient``, and ``openai`` the token ids
with ``openai.AsyncOpenAI``: times then hold the work of these libraries in this process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.serving.ray_llm import SERVED
from benchmarks.support.http import Connection, Timeline, post_message, read_timeline
from client_lib import AsyncClient, DELClientError, EncodedPrompt, private
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.types import Tokenized
from client_lib.protocol.upstream import UPSTREAMS
from del_core.bundle import Bundle, load_bundle
from del_core.decoders import Decoder
from del_core.wire import PrivateSegment, Request, Sampling, encode_frame

__all__ = ["Prompts", "Round", "quantiles"]

_QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Round:
    """One measurement of one system.

    Closed loop: ``concurrency`` requests in flight at any time, for ``seconds`` or until
    ``max_requests`` have begun. Open loop: requests begin at Poisson times of ``rate`` a second,
    with at most ``concurrency`` in flight; latencies count from the due time of a request.

    ``variant`` is that of private prompts, or the name of the served model that token ids ask.
    Requests that are unfinished after ``limit_s`` count as failed.
    """

    kind: Literal["engine", "vllm", "application", "exported", "client", "openai"]
    host: str
    port: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    seed: int
    seconds: float
    max_requests: int
    rate: float | None = None
    variant: str | None = None
    limit_s: float = 60.0


def quantiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99 of values in seconds, as milliseconds; empty for no values."""
    if not values:
        return {}
    return {f"p{q}_ms": float(np.percentile(values, q)) * 1e3 for q in _QUANTILES}


class Prompts:
    """Makes the prompts of a round in the form of a system."""

    def __init__(self, bundle: Bundle, variant: str) -> None:
        self._bundle = bundle
        self._variant = variant
        self._soft = bundle.soft_prompt(variant)

    @property
    def soft_rows(self) -> int:
        """The rows of the soft prompt."""
        return len(self._soft)

    @property
    def client_bundle(self) -> Path:
        """The directory of the bundle's client part."""
        return self._bundle.path / "client"

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._bundle.client)

    @cached_property
    def _decoder(self) -> Decoder:
        return self._bundle.build_decoder(self._variant)

    def make(self, plan: Round) -> list[Any]:
        """Return the prompts of a round.

        They are whole HTTP messages for bare connections, embeddings (rows, hidden size) for the
        engine, an encoded prompt for ``client`` and token ids for ``openai``.
        """
        generator = np.random.default_rng(plan.seed)
        vocabulary = self._bundle.manifest.base_model.vocabulary_size
        prefix = [int(token) for token in np.random.default_rng(0).integers(2, vocabulary, len(self._soft))]
        return [
            self._form(plan, prefix, generator.integers(2, vocabulary, plan.prompt_tokens))
            for _ in range(plan.max_requests)
        ]

    def _form(self, plan: Round, prefix: list[int], token_ids: Any) -> Any:
        ids = [*prefix, *(int(token) for token in token_ids)]
        if plan.kind == "openai":
            return ids
        if plan.kind == "vllm":
            fields = {
                "model": plan.variant or SERVED,
                "prompt": ids,
                "max_tokens": plan.output_tokens,
                "temperature": 0.0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            return _completion(plan, json.dumps(fields).encode())
        variant = plan.variant or self._variant
        sampling = Sampling(temperature=0.0, max_tokens=plan.output_tokens, ignore_eos=True, stream=True)
        if plan.kind in ("exported", "client"):
            hidden = Tokenized(private(" "), tuple(ids[len(prefix) :]))
            encoded = self._encoder.draw([hidden], variant, continues=True)
            if plan.kind == "client":
                return encoded
            return _completion(plan, UPSTREAMS["openai"].content(self._encoder, encoded, sampling))
        counts = self._bundle.mechanism(variant).sample(np.asarray(self._bundle.client.table_of(variant))[token_ids])
        if plan.kind == "engine":
            return np.concatenate([self._soft, self._decoder.decode(counts)], dtype=np.float32)
        request = Request(self._bundle.fingerprint, variant, (PrivateSegment(counts),), sampling)
        frame = encode_frame(request, bits=self._bundle.variants[variant].bits)
        return post_message(plan.host, plan.port, frame)


def _completion(plan: Round, body: bytes) -> bytes:
    return post_message(plan.host, plan.port, body, path="/v1/completions", media_type="application/json")


_Send = Callable[[Any, float], Awaitable[Callable[[], Timeline]]]
"""Sends a prompt with a due time; the result is called after the run and reads the answer."""


class _Generator:
    """Runs rounds."""

    def __init__(self, engine: Any, prompts: Prompts) -> None:
        self._engine = engine
        self._soft_rows = prompts.soft_rows
        self._client_bundle = prompts.client_bundle
        self._soft_prompts = {"hit": 0, "miss": 0}
        """Requests to the engine by whether its cache had the whole soft prompt."""
        self._number = 0
        self._idle: list[Connection] = []
        self._address: tuple[str, int] | None = None
        self._libraries: dict[tuple[str, str, int], Any] = {}

    async def run(self, plan: Round, prompts: list[Any]) -> dict[str, Any]:
        """Run a round and return its figures."""
        self._soft_prompts = dict.fromkeys(self._soft_prompts, 0)
        makers = {"engine": self._ask_engine, "client": self._ask_with_client, "openai": self._ask_with_openai}
        send = makers.get(plan.kind, self._ask_server)(plan)
        answers: list[Callable[[], Timeline]] = []
        failed = 0

        async def one(prompt: Any, due: float) -> None:
            nonlocal failed
            try:
                answers.append(await send(prompt, due))
            except OSError:
                failed += 1

        cpu, began = time.process_time(), time.perf_counter()
        work = asyncio.ensure_future(_open(plan, prompts, one) if plan.rate else _closed(plan, prompts, one))
        _, unfinished = await asyncio.wait((work,), timeout=plan.limit_s)
        if unfinished:
            work.cancel()
            await asyncio.wait((work,))
            failed += 1
        cpu = time.process_time() - cpu
        timelines = []
        for answer in answers:
            try:
                timeline = answer()
                if timeline.tokens != plan.output_tokens:
                    raise ValueError("another number of tokens than was asked for")
                timelines.append(timeline)
            except ValueError:
                failed += 1
        elapsed = max([began, *(timeline.events[-1] for timeline in timelines)]) - began
        figures = {"elapsed_s": elapsed, "generator_cpu_s": cpu, "failed": failed, **_figures(timelines, elapsed)}
        return {**figures, "soft_prompts": self._soft_prompts} if plan.kind == "engine" else figures

    def _ask_server(self, plan: Round) -> _Send:
        if self._address != (plan.host, plan.port):
            for connection in self._idle:
                connection.close()
            self._idle, self._address = [], (plan.host, plan.port)
        idle = self._idle

        async def send(message: bytes, due: float) -> Callable[[], Timeline]:
            connection = idle.pop() if idle else Connection(plan.host, plan.port)
            try:
                answer = await connection.post(message)
            except BaseException:
                connection.close()
                raise
            idle.append(connection)
            return lambda: read_timeline(due, answer)

        return send

    def _ask_engine(self, plan: Round) -> _Send:
        from deployments.engines.base import EngineSampling

        sampling = EngineSampling(max_tokens=plan.output_tokens, temperature=0.0)
        soft_rows = self._soft_rows

        async def send(embeddings: Any, due: float) -> Callable[[], Timeline]:
            self._number += 1
            events, tokens = [], 0
            async for delta in self._engine.generate(f"r{self._number}", embeddings, sampling):
                if not events and delta.cached_rows is not None:
                    self._soft_prompts["hit" if delta.cached_rows >= soft_rows else "miss"] += 1
                events.append(time.perf_counter())
                tokens += len(delta.token_ids)
            return lambda: Timeline(due, tuple(events), tokens)

        return send

    def _ask_with_client(self, plan: Round) -> _Send:
        client = self._library(plan)

        async def send(prompt: EncodedPrompt, due: float) -> Callable[[], Timeline]:
            options = {"max_tokens": plan.output_tokens, "temperature": 0.0, "ignore_eos": True}
            events, tokens = [], 0
            try:
                async with client.stream(prompt, variant=prompt.variant, **options) as stream:
                    async for chunk in stream:
                        events.append(time.perf_counter())
                        tokens += len(chunk.token_ids)
            except DELClientError as error:
                raise OSError(str(error)) from error
            return lambda: Timeline(due, tuple(events), tokens)

        return send

    def _ask_with_openai(self, plan: Round) -> _Send:
        from openai import OpenAIError

        client = self._library(plan)

        async def send(ids: list[int], due: float) -> Callable[[], Timeline]:
            events, tokens = [], 0
            try:
                stream = await client.completions.create(
                    model=plan.variant or SERVED,
                    prompt=ids,
                    max_tokens=plan.output_tokens,
                    temperature=0.0,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                )
                async for chunk in stream:
                    if chunk.choices:
                        events.append(time.perf_counter())
                    tokens = chunk.usage.completion_tokens if chunk.usage else tokens
            except OpenAIError as error:
                raise OSError(str(error)) from error
            return lambda: Timeline(due, tuple(events), tokens)

        return send

    def _library(self, plan: Round) -> Any:
        """Return the client of a library for a server; its connections are kept between rounds."""
        key, url = (plan.kind, plan.host, plan.port), f"http://{plan.host}:{plan.port}"
        if key not in self._libraries:
            if plan.kind == "client":
                self._libraries[key] = AsyncClient(url, upstream="openai", bundle=self._client_bundle)
            else:
                from openai import AsyncOpenAI

                self._libraries[key] = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
        return self._libraries[key]

    async def close(self) -> None:
        """Close the connections of the libraries."""
        for client in self._libraries.values():
            await client.close()


async def _closed(plan: Round, prompts: list[Any], one: Callable[[Any, float], Awaitable[None]]) -> None:
    end = time.perf_counter() + plan.seconds
    waiting = iter(prompts)

    async def user() -> None:
        for prompt in waiting:
            await one(prompt, time.perf_counter())
            if time.perf_counter() > end:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(plan.concurrency):
            group.create_task(user())


async def _open(plan: Round, prompts: list[Any], one: Callable[[Any, float], Awaitable[None]]) -> None:
    assert plan.rate is not None
    source = random.Random(plan.seed)
    room = asyncio.Semaphore(plan.concurrency)

    async def user(prompt: Any, due: float) -> None:
        async with room:
            await one(prompt, due)

    due = time.perf_counter()
    end = due + plan.seconds
    async with asyncio.TaskGroup() as group:
        for prompt in prompts:
            due += source.expovariate(plan.rate)
            if due > end:
                return
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(user(prompt, due))


def _figures(timelines: list[Timeline], elapsed: float) -> dict[str, Any]:
    if not timelines:
        return {"requests": 0, "rps": 0.0, "tokens_per_s": 0.0, "ttft": {}, "itl": {}, "gap": {}}
    several = [one for one in timelines if one.tokens > 1]
    return {
        "requests": len(timelines),
        "rps": len(timelines) / elapsed,
        "tokens_per_s": sum(one.tokens for one in timelines) / elapsed,
        "ttft": quantiles([one.events[0] - one.began for one in timelines]),
        # Of a request: the time from the first token to the last, per token.
        "itl": quantiles([(one.events[-1] - one.events[0]) / (one.tokens - 1) for one in several]),
        # The pauses between events.
        "gap": quantiles([b - a for one in timelines for a, b in zip(one.events, one.events[1:], strict=False)]),
    }


async def _main() -> None:
    first = json.loads(sys.stdin.readline())
    engine = None
    if first["engine"] is not None:
        from deployments.engines.vllm.engine import VllmEngine, VllmSettings

        engine = VllmEngine(Path(first["model"]), VllmSettings.model_validate(first["engine"]))
        await engine.start()
    prompts = Prompts(load_bundle(Path(first["bundle"])), first["variant"])
    generator = _Generator(engine, prompts)
    gc.freeze()
    try:
        _say({"started": True})
        while line := await asyncio.to_thread(sys.stdin.readline):
            plan = Round(**json.loads(line))
            made = prompts.make(plan)
            _say({"prepared": True})
            await asyncio.to_thread(sys.stdin.readline)
            _say(await generator.run(plan, made))
    finally:
        await generator.close()
        if engine is not None:
            await engine.shutdown()


def _say(report: dict[str, Any]) -> None:
    os.write(_ANSWERS, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    # The engine's libraries write to standard output: they get standard error instead.
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
