"""Budgets, rates, what is checked before anything is charged, logs and metrics."""

from __future__ import annotations

import json
import logging
import re
import secrets
from dataclasses import replace
from pathlib import Path

import pytest
import redis.asyncio

from examples.mobile_backend.chats import Chat, Chats, Turn
from examples.mobile_backend.errors import RefusedError
from examples.mobile_backend.limits import RateLimits
from examples.mobile_backend.observe import JSONFormatter
from examples.mobile_backend.settings import Plan, Settings, SettingsError, read_plans
from examples.mobile_backend.turns import Turns, queue
from tests.examples.mobile_backend.conftest import PLAN, counts, running
from tests.support.redis_server import RedisServer
from tests.support.scripted_server import ScriptedServer, error

TEXT = "the quick brown fox"


def with_plan(settings: Settings, **changes: object) -> Settings:
    return replace(settings, plans={**settings.plans, "free": PLAN.model_copy(update=changes)})


# --- budgets --------------------------------------------------------------------------------------


def test_a_budget_covers_its_tokens_and_not_one_more(server: ScriptedServer, settings: Settings) -> None:
    with running(settings) as backend:
        backend.say(TEXT)
    tokens = counts(server, 0)[0].tokens
    other = replace(with_plan(settings, tokens=2 * tokens), key=secrets.token_bytes(32))
    with running(other) as backend:
        assert backend.say(TEXT)[-1]["budget"]["tokens_left"] == tokens
        assert backend.say(TEXT, chat="2")[-1]["budget"]["tokens_left"] == 0
        refused = backend.post(TEXT, chat="3")
        told = refused.json()["error"]
        assert (refused.status_code, told["code"], told["field"]) == (429, "budget_spent", "text")
        assert (
            f"at most 0 private tokens, the rest of the plan free's {2 * tokens} in 24 h, got {tokens}"
            in (told["message"])
        )
        assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600 + 120  # and the end of its bucket
        assert len(server.frames) == 3  # nothing was sent
        backend.say(TEXT, token="bob-token")


def test_a_message_larger_than_the_budget_says_so(server: ScriptedServer, settings: Settings) -> None:
    with running(with_plan(settings, tokens=5)) as backend:
        refused = backend.post(TEXT + " and the lazy dog")
        told = refused.json()["error"]
        assert (refused.status_code, told["code"], told["field"]) == (413, "message_too_long", "text")
        assert "at most 5 private tokens, all that the plan free gives in 24 h" in told["message"]
        assert backend.left() == 5
        assert server.frames == []


def test_history_that_would_be_charged_again_is_left_out(server: ScriptedServer, settings: Settings) -> None:
    """As after an erasure of the ledger: the noise of earlier turns is no longer paid for."""
    with running(settings) as backend:
        backend.say(TEXT)
    tokens = counts(server, 0)[0].tokens
    with running(with_plan(settings, tokens=2 * tokens - 1)) as backend:
        person = backend.backend.named("person", "alice")
        backend.get("/readyz")
        backend.backend.budgets._ledgers["free"].erase(person)
        last = backend.say("what now")[-1]
    assert last["history"]["kept"] + last["history"]["left_out"] == 1
    assert len(counts(server, 1)) == 1 + last["history"]["kept"]


def test_history_older_than_the_window_is_left_out(server: ScriptedServer, settings: Settings) -> None:
    now = 1_000_000.0
    turns = [
        Turn("1", "a", now - 90_000, "balanced", "b"),
        Turn("2", "c", now - 60, "balanced", None),
        Turn("3", "d", now - 60, "strict", "e"),
        Turn("4", "f", now - 60, "balanced", "g"),
    ]
    kept = Chat(turns).history("balanced", since=now - 86_400)
    assert [turn.id for turn in kept] == ["4"]


def test_without_a_server_nothing_is_charged(server: ScriptedServer, settings: Settings) -> None:
    server.models = error(503, "overloaded", {"retry-after": "7"})
    with running(settings) as backend:
        refused = backend.post(TEXT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_busy")
        assert refused.headers["retry-after"] == "7"
        assert backend.get("/readyz").status_code == 503
        assert backend.get("/healthz").json() == {"status": "ok"}
        assert backend.left() == 600
    assert server.frames == []


def test_without_redis_nothing_is_sent(server: ScriptedServer, settings: Settings, tmp_path: Path) -> None:
    with running(replace(settings, redis=f"unix://{tmp_path}/nothing")) as backend:
        refused = backend.post(TEXT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        assert backend.get("/readyz").json()["error"]["code"] == "storage_unavailable"
        assert backend.get("/healthz").status_code == 200
    assert server.frames == []


def test_a_level_that_protects_less_than_the_plan_says_is_refused(server: ScriptedServer, settings: Settings) -> None:
    with running(with_plan(settings, max_epsilon_per_token=0.5)) as backend:
        refused = backend.post(TEXT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "server_changed")
        assert backend.left() == 600
    assert server.frames == []


# --- rates ----------------------------------------------------------------------------------------


def test_a_user_sends_so_many_at_once(settings: Settings) -> None:
    with running(with_plan(settings, burst=2, messages_per_minute=0.001)) as backend:
        backend.say(TEXT)
        backend.say(TEXT, chat="2")
        refused = backend.post(TEXT, chat="3")
        told = refused.json()["error"]
        assert (refused.status_code, told["code"]) == (429, "too_many_messages")
        assert "at most 2 at once and 0.001 a minute" in told["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 60_000
        backend.say(TEXT, token="bob-token")


async def test_a_bucket_fills_again(redis: RedisServer) -> None:
    client = redis_client(redis)
    limits, person = RateLimits(client), secrets.token_hex(8)
    plan = PLAN.model_copy(update={"burst": 1, "messages_per_minute": 0.001})
    await limits.take(person, plan)
    key = f"rate:{person}"
    before = float(await client.hget(key, "at") or 0)
    await client.hset(key, "at", str(before - 60_000))  # the time of one message passes
    await limits.take(person, plan)
    with pytest.raises(RefusedError, match="at most 1 at once"):
        await limits.take(person, plan)
    await client.aclose()


def redis_client(server: RedisServer) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(server.url)


# --- turns ----------------------------------------------------------------------------------------


async def test_the_ticket_of_a_dead_process_is_dropped(redis: RedisServer) -> None:
    client, chat = redis_client(redis), secrets.token_hex(8)
    await client.rpush(queue(chat), "dead")
    async with Turns(client, 5, 60.0).turn(chat) as ticket:
        assert await client.lrange(queue(chat), 0, -1) == [ticket.encode()]
    assert await client.exists(queue(chat)) == 0
    await client.aclose()


async def test_who_lost_the_turn_saves_nothing(redis: RedisServer) -> None:
    client, name = redis_client(redis), secrets.token_hex(8)
    chats = Chats(client, bytes(32))
    async with Turns(client, 5, 60.0).turn(name) as ticket:
        await chats.save(name, Chat([Turn("1", "secret", 1.0, "strict", "yes")], b"noise"), ticket)
        with pytest.raises(RefusedError, match="turn_lost"):
            await chats.save(name, Chat(), "another")
    kept = await chats.load(name)
    assert (kept.turns[0].text, kept.memory) == ("secret", b"noise")
    assert b"secret" not in (await client.get(f"chat:{{{name}}}") or b"")
    await client.aclose()


async def test_a_chat_with_much_noise_begins_anew(redis: RedisServer) -> None:
    client, name = redis_client(redis), secrets.token_hex(8)
    chats = Chats(client, bytes(32))
    async with Turns(client, 5, 60.0).turn(name) as ticket:
        turns = [Turn(str(index), "a", 1.0, "strict", "b") for index in range(60)]
        await chats.save(name, Chat(turns, bytes(1 + (1 << 20))), ticket)
    kept = await chats.load(name)
    assert (len(kept.turns), kept.memory, kept.history("strict", 0.0)) == (50, None, [])
    assert kept.find("59") is not None
    await client.aclose()


# --- logs and metrics -----------------------------------------------------------------------------


def test_a_line_for_each_message_without_its_text(
    settings: Settings, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with running(settings) as backend:
        backend.say(TEXT, chat="holiday", message_id="m1")
        backend.say(TEXT, chat="holiday", message_id="m1")
        server.script.append(error(500, "internal_error", {"retry-after": "61"}))
        backend.post("what now", chat="holiday")
        metrics = backend.get("/metrics").text
    lines = [JSONFormatter().format(record) for record in caplog.records if record.name != "httpx"]  # the test's own
    messages = [line for line in map(json.loads, lines) if line["event"] == "message"]
    assert [line["outcome"] for line in messages] == ["answered", "answered", "server_failed"]
    assert [line["replayed"] for line in messages] == [False, True, False]
    first = messages[0]
    tokens = counts(server, 0)[0].tokens
    assert (first["plan"], first["private_tokens"], first["tokens_left"]) == ("free", tokens, 600 - tokens)
    assert 0 < first["first_text_s"] <= first["seconds"]
    assert len({line["user"] for line in messages}) == len({line["chat"] for line in messages}) == 1
    assert messages[2]["exception"] == "ServerError"
    assert "HTTP 500, code internal_error" in messages[2]["reason"]
    assert all(re.fullmatch(r".*\.py:\d+", place) for place in messages[2]["places"])
    for secret in ("quick", "alice", "holiday", "what now", "m1"):
        assert not any(secret in line for line in lines), secret
    assert 'backend_messages_total{outcome="answered",plan="free"} 2.0' in metrics
    assert f'backend_private_tokens_total{{plan="free"}} {tokens}.0' in metrics
    assert "alice" not in metrics


# --- settings -------------------------------------------------------------------------------------

ENVIRONMENT = {"DEL_URL": "http://127.0.0.1:1", "REDIS_URL": "redis://127.0.0.1:1", "BACKEND_KEY": "ab" * 32}


def test_the_plans_that_ship_are_valid() -> None:
    plans = Settings.from_environment(ENVIRONMENT).plans
    assert {plan.variant for plan in plans.values()} == {"balanced", "strict"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DEL_URL", "", "DEL_URL: must be set"),
        ("BACKEND_KEY", "abc", "BACKEND_KEY: must be 64 hexadecimal digits, got 3 characters"),
        ("PLANS", "/nowhere.toml", "must be a readable TOML file"),
    ],
)
def test_settings_are_checked(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        Settings.from_environment({**ENVIRONMENT, name: value})


GOOD = {"variant": '"strict"', "max_epsilon_per_token": "8.0", "tokens": "600"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": "0"}, "free.tokens: Input should be greater than or equal to 1, got 0"),
        ({"tokens": '"many"'}, "free.tokens: Input should be a valid integer"),
        ({"max_epsilon_per_token": "inf"}, "free.max_epsilon_per_token: Input should be a finite number, got inf"),
        ({"colour": "1"}, "free.colour: Extra inputs are not permitted, got 1"),
    ],
)
def test_plans_are_checked(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    path = tmp_path / "plans.toml"

    def write(fields: dict[str, str]) -> None:
        path.write_text("[free]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items()))

    write(GOOD)
    assert read_plans(path)["free"] == Plan(variant="strict", max_epsilon_per_token=8.0, tokens=600)
    write({**GOOD, **changes})
    with pytest.raises(SettingsError, match=re.escape(said)):
        read_plans(path)


def test_pseudonyms_differ_by_purpose_and_boundaries(settings: Settings) -> None:
    names = [("chat", "ab", "c"), ("chat", "a", "bc"), ("log", "ab", "c")]
    assert len({settings.derived(*name) for name in names}) == len(names)
