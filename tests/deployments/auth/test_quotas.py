"""Quotas over many replicas: leases, refusals, an unavailable ledger."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from del_core.bundle import Bundle
from del_core.errors import FrameError
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.auth.keys import Caller, Keys, hash_key, new_key
from deployments.auth.quotas import Lease, QuotaExceededError, QuotaLedger, Quotas, QuotaUnavailableError
from deployments.sections import QuotaSettings
from deployments.settings import parse_keys
from tests.support.scripted_engine import ScriptedEngine
from tests.support.serving_frames import HEADERS, PATH, make_frame


class Clock:
    """A clock that the test sets, in seconds, 10 s into a minute."""

    def __init__(self) -> None:
        self.now = 600_010.0

    def __call__(self) -> float:
        return self.now


class Counting:
    """A source of leases that counts the calls."""

    def __init__(self, ledger: QuotaLedger) -> None:
        self.ledger = ledger
        self.asked = 0

    async def __call__(self, name: str, requests: int | None, tokens: int | None, need: int) -> Lease:
        self.asked += 1
        await asyncio.sleep(0)  # as over a network, others run meanwhile
        return self.ledger.lease(name, requests, tokens, need)


async def spend(replicas: list[Quotas], caller: Caller, needs: list[int]) -> tuple[int, int]:
    """Return requests and tokens that were admitted, at random replicas at once."""

    async def one(need: int) -> int | None:
        try:
            await random.choice(replicas).charge(caller, need)
        except QuotaExceededError as error:
            waits.append(error.retry_after)
            return None
        return need

    waits: list[int] = []
    through = [need for need in await asyncio.gather(*map(one, needs)) if need is not None]
    assert all(1 <= wait <= 60 for wait in waits)
    return len(through), sum(through)


async def test_requests_hold_over_all_replicas_and_come_back_with_the_minute() -> None:
    clock = Clock()
    source = Counting(QuotaLedger(clock=clock))
    replicas = [Quotas(source, clock=clock) for _ in range(5)]
    caller = Caller("app", requests_per_minute=300)
    requests, _ = await spend(replicas, caller, [1] * 1000)
    # Never more; and no more than what four other replicas may still hold in leases is left
    # unspent.
    assert 300 - 4 * 18 <= requests <= 300
    # One by one, whatever is held anywhere is found: not one request more.
    later = [await spend([replica], caller, [1] * 40) for replica in replicas]
    assert requests + sum(count for count, _ in later) == 300
    assert source.asked < 200
    clock.now += 50
    assert (await spend(replicas[:1], caller, [1] * 300))[0] == 300


async def test_tokens_hold_over_all_replicas_whatever_the_sizes() -> None:
    clock = Clock()
    ledger = QuotaLedger(clock=clock)
    replicas = [Quotas(Counting(ledger), clock=clock) for _ in range(4)]
    caller = Caller("app", tokens_per_minute=10_000)
    needs = [random.randrange(1, 400) for _ in range(500)]
    _, tokens = await spend(replicas, caller, needs)
    assert 10_000 - 400 - 3 * 625 <= tokens <= 10_000
    other = Caller("web", tokens_per_minute=10_000)
    assert (await spend(replicas, other, [100]))[0] == 1


async def test_what_was_not_used_is_given_back_in_its_own_minute_only() -> None:
    clock = Clock()
    quotas = Quotas(Counting(QuotaLedger(clock=clock)), clock=clock)
    caller = Caller("app", tokens_per_minute=100)
    charge = await quotas.charge(caller, 100)
    with pytest.raises(QuotaExceededError) as caught:
        await quotas.charge(caller, 50)
    assert caught.value.retry_after == 50
    charge.settle(40)
    late = await quotas.charge(caller, 60)
    clock.now += 50
    assert (await spend([quotas], caller, [60, 60]))[0] == 1
    late.settle(0)
    with pytest.raises(QuotaExceededError):
        await quotas.charge(caller, 60)


async def test_a_book_that_comes_back_grants_nothing_twice() -> None:
    clock = Clock()
    ledger = QuotaLedger(clock=clock)
    caller = Caller("app", requests_per_minute=100)
    first = (await spend([Quotas(Counting(ledger), clock=clock)], caller, [1] * 70))[0]
    again = QuotaLedger(json.loads(json.dumps(ledger.state())), clock=clock)
    second = (await spend([Quotas(Counting(again), clock=clock)], caller, [1] * 70))[0]
    assert first == 70
    assert second <= 30


async def test_a_refused_need_is_refused_without_asking_again() -> None:
    clock = Clock()
    source = Counting(QuotaLedger(clock=clock))
    quotas = Quotas(source, clock=clock)
    caller = Caller("app", requests_per_minute=1)
    assert (await spend([quotas], caller, [1] * 500))[0] == 1
    assert source.asked == 2
    assert await quotas.charge(Caller("free"), 10**9)
    assert source.asked == 2
    with pytest.raises(FrameError, match="must be at most 10 tokens for this key, got 11"):
        await quotas.charge(Caller("app", tokens_per_minute=10), 11)


async def test_http_answers(make_service: Callable[..., Any], bundle: Bundle) -> None:
    key = new_key()
    keys = Keys(parse_keys({"app": {"hashes": [hash_key(key)], "requests_per_minute": 2}}))
    headers = HEADERS | {"authorization": f"Bearer {key}"}
    frame = make_frame(bundle)

    async def ask(quotas: Quotas, times: int, **options: Any) -> list[httpx.Response]:
        app = create_app(make_service(ScriptedEngine()), APIOptions(keys=keys, quotas=quotas, **options))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.post(PATH, content=frame, headers=headers) for _ in range(times)]

    clock = Clock()
    responses = await ask(Quotas(Counting(QuotaLedger(clock=clock)), clock=clock), 3)
    assert [response.status_code for response in responses] == [200, 200, 429]
    assert responses[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert responses[2].headers["retry-after"] == "50"

    async def gone(name: str, requests: int | None, tokens: int | None, need: int) -> Lease:
        raise QuotaUnavailableError("gone")

    (closed,) = await ask(Quotas(gone), 1)
    assert (closed.status_code, closed.headers["retry-after"]) == (503, "1")
    assert closed.json()["error"]["code"] == "overloaded"
    (opened,) = await ask(Quotas(gone), 1, quota_settings=QuotaSettings(fail_open=True))
    assert opened.status_code == 200


async def test_resumed_tokens_are_charged(make_service: Callable[..., Any], bundle: Bundle) -> None:
    """The engine computes resumed tokens as it does a prompt, so they spend quota alike."""
    key = new_key()
    keys = Keys(parse_keys({"app": {"hashes": [hash_key(key)], "tokens_per_minute": 300}}))
    headers = HEADERS | {"authorization": f"Bearer {key}"}
    clock = Clock()
    quotas = Quotas(Counting(QuotaLedger(clock=clock)), clock=clock)
    app = create_app(make_service(ScriptedEngine()), APIOptions(keys=keys, quotas=quotas))
    frame = make_frame(bundle, resume=(20,) * 200, max_tokens=202)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        responses = [await client.post(PATH, content=frame, headers=headers) for _ in range(12)]
        statuses = [response.status_code for response in responses]
        assert statuses == [200] + [429] * 11
        # Of the first request's tokens none is returned: all were computed.
        used = responses[0].json()["usage"]["prompt_tokens"] + 202
        left = make_frame(bundle, tokens=1, max_tokens=300 - used - 5)
        assert (await client.post(PATH, content=left, headers=headers)).status_code == 200
        more = make_frame(bundle, tokens=1, max_tokens=300 - used)
        assert (await client.post(PATH, content=more, headers=headers)).status_code == 429
        long = make_frame(bundle, resume=(20,) * 300, max_tokens=301)
        refused = await client.post(PATH, content=long, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
