"""The load generator of ``benchmarks.overload``: ``python -m benchmarks.support.flood``.

    first line      {"bundle", "variant"}
    further lines   a :class:`Flood`: the program answers {"prepared": true}, waits for a line,
                    works, and answers with the figures

Unlike ``benchmarks.support.load`` it expects refusals and counts them by status and code. Its open
requests are bounded in count (``most_in_flight``) and in time: an answer that takes too long counts
as ``unfinished``.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.support.http import Connection
from benchmarks.support.load import Prompts, Round, quantiles
from del_core.bundle import load_bundle

__all__ = ["Flood"]

_DISTINCT_PROMPTS = 4000
_ANSWER_LIMIT_S = 30.0


@dataclass(frozen=True)
class Flood:
    """Requests to one server for ``seconds``.

    With ``rate`` (requests a second) they begin at Poisson times; a request that would exceed
    ``most_in_flight`` open ones is not sent, and counted. Without, ``most_in_flight`` clients send
    one request after the other.
    """

    host: str
    port: int
    prompt_tokens: int
    output_tokens: int
    seed: int
    seconds: float
    most_in_flight: int
    rate: float | None = None


@dataclass
class _Tally:
    """Seconds from due times to the ends of answers, and counts of other outcomes."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    broken: int = 0
    unfinished: int = 0
    not_sent: int = 0


class _Flooding:
    """One flood."""

    def __init__(self, flood: Flood, prompts: Iterator[bytes]) -> None:
        self._flood = flood
        self._prompts = prompts
        self._idle: list[Connection] = []
        self._tally = _Tally()

    async def run(self) -> dict[str, Any]:
        """Run the flood and return the figures."""
        began = time.perf_counter()
        end = began + self._flood.seconds
        await (self._closed(end) if self._flood.rate is None else self._open(end, self._flood.rate))
        elapsed = time.perf_counter() - began
        for connection in self._idle:
            connection.close()
        tally = self._tally
        return {
            "elapsed_s": elapsed,
            "accepted": {"count": len(tally.accepted), "rps": len(tally.accepted) / elapsed}
            | quantiles(tally.accepted),
            "refused": {"count": len(tally.refused), "rps": len(tally.refused) / elapsed} | quantiles(tally.refused),
            "codes": dict(tally.codes),
            "without_retry_after": tally.without_retry_after,
            "broken": tally.broken,
            "unfinished": tally.unfinished,
            "not_sent": tally.not_sent,
        }

    async def _closed(self, end: float) -> None:
        async def user() -> None:
            while time.perf_counter() < end:
                await self._one(time.perf_counter())

        async with asyncio.TaskGroup() as group:
            for _ in range(self._flood.most_in_flight):
                group.create_task(user())

    async def _open(self, end: float, rate: float) -> None:
        source = random.Random(self._flood.seed)
        open_now: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        while (due := due + source.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if len(open_now) >= self._flood.most_in_flight:
                self._tally.not_sent += 1
                continue
            task = asyncio.create_task(self._one(due))
            open_now.add(task)
            task.add_done_callback(open_now.discard)
        await asyncio.gather(*open_now)

    async def _one(self, due: float) -> None:
        connection = self._idle.pop() if self._idle else Connection(self._flood.host, self._flood.port)
        message = next(self._prompts)
        try:
            async with asyncio.timeout(_ANSWER_LIMIT_S):
                answer = await connection.post(message)
        except TimeoutError:
            self._tally.unfinished += 1
            connection.close()
            return
        except OSError:
            self._tally.broken += 1
            connection.close()
            return
        took = time.perf_counter() - due
        self._idle.append(connection)
        if answer.status == 200:
            if b"data: [DONE]" in answer.body:
                self._tally.accepted.append(took)
            else:
                self._tally.broken += 1
            return
        self._tally.refused.append(took)
        self._tally.codes[f"{answer.status} {_code(answer.body)}"] += 1
        self._tally.without_retry_after += answer.header("retry-after") is None


def _code(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no error object"


async def _main() -> None:
    first = json.loads(sys.stdin.readline())
    prompts = Prompts(load_bundle(Path(first["bundle"])), first["variant"])
    gc.freeze()
    _say({"started": True})
    while line := await asyncio.to_thread(sys.stdin.readline):
        flood = Flood(**json.loads(line))
        expected = flood.seconds * (flood.rate or 100.0 * flood.most_in_flight)
        plan = Round(
            kind="application",
            host=flood.host,
            port=flood.port,
            concurrency=flood.most_in_flight,
            prompt_tokens=flood.prompt_tokens,
            output_tokens=flood.output_tokens,
            seed=flood.seed,
            seconds=flood.seconds,
            max_requests=min(_DISTINCT_PROMPTS, 16 + int(expected)),
        )
        made = prompts.make(plan)
        _say({"prepared": True})
        await asyncio.to_thread(sys.stdin.readline)
        _say(await _Flooding(flood, cycle(made)).run())


def _say(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
