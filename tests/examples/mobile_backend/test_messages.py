"""Messages and their answers: streams, history, order, retries, and what the app is told."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from del_core.wire import PublicSegment
from examples.mobile_backend.settings import Settings
from tests.examples.mobile_backend.conftest import PLAN, Running, counts, events_of, eventually, running, text_of
from tests.support.scripted_server import (
    Received,
    ScriptedServer,
    cut,
    error,
    expected_text,
    expected_tokens,
    stream_events,
)

WHOLE = expected_text(expected_tokens(PLAN.answer_tokens))


class Gate:
    """A behavior of the server: it streams, but waits for the test after some events."""

    def __init__(self, after_events: int = 0) -> None:
        self._open = threading.Event()
        self._after = after_events

    def open(self) -> None:
        self._open.set()

    async def __call__(self, server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        events = stream_events(server.decode(received.body), "balanced")
        before = 1 + self._after  # a comment is the first
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b"".join(events[:before]))
        await writer.drain()
        while not self._open.is_set() and not server.stopping.is_set():
            await asyncio.sleep(0.005)
        writer.write(b"".join(events[before:]))
        await writer.drain()
        writer.close()


def test_an_answer_comes_in_pieces_and_says_what_is_left(backend: Running, server: ScriptedServer) -> None:
    first = backend.post("my doctor told me that the test was positive")
    assert first.status_code == 200
    assert first.headers["content-type"].startswith("text/event-stream")
    *pieces, last = events_of(first.text)
    assert text_of(pieces) == WHOLE
    assert len(pieces) > 2
    tokens = counts(server, 0)[0].tokens
    budget = {"plan": "free", "tokens": 600, "tokens_left": 600 - tokens, "window_hours": 24.0}
    assert last == {"finish_reason": "length", "budget": budget, "history": {"kept": 0, "left_out": 0}}
    assert backend.get("/budget").json() == budget
    assert backend.left("bob-token") == 600


def test_the_history_is_sent_as_it_was_and_charged_once(backend: Running, server: ScriptedServer) -> None:
    backend.say("my doctor told me that the test was positive")
    last = backend.say("what now")[-1]
    backend.say("what now", chat="2")
    assert last["history"] == {"kept": 1, "left_out": 0}
    assert [len(counts(server, index)) for index in range(3)] == [1, 2, 1]  # answers are public
    assert counts(server, 1)[:1] == counts(server, 0)
    assert counts(server, 2) != counts(server, 1)[1:]  # a chat of its own
    spent = sum(one.tokens for index in (1, 2) for one in counts(server, index))
    assert backend.left() == 600 - spent
    public = [one for one in server.decode(server.frames[1]).segments if isinstance(one, PublicSegment)]
    assert sum(len(one.token_ids) for one in public) > 0


def test_another_process_continues_a_chat(backend: Running, server: ScriptedServer, settings: Settings) -> None:
    backend.say("my doctor told me that the test was positive")
    with running(settings) as other:
        assert other.say("what now")[-1]["history"]["kept"] == 1
        assert counts(server, 1)[:1] == counts(server, 0)
        assert other.left() == 600 - sum(one.tokens for one in counts(server, 1))


def test_a_message_that_is_sent_again_is_not_charged_again(backend: Running, server: ScriptedServer) -> None:
    first = backend.say("the quick brown fox", message_id="m1")
    left = backend.left()
    again = backend.say("the quick brown fox", message_id="m1")
    assert text_of(again) == text_of(first)
    assert again[-1]["finish_reason"] == "length"
    assert (len(server.frames), backend.left()) == (1, left)
    reused = backend.post("another text", message_id="m1")
    assert (reused.status_code, reused.json()["error"]["code"]) == (409, "id_reused")


def test_a_message_that_failed_is_sent_again_with_the_same_noise(
    backend: Running, server: ScriptedServer, settings: Settings
) -> None:
    server.script.append(error(500, "internal_error", {"retry-after": "61"}))
    failed = backend.post("the quick brown fox", message_id="m1")
    assert (failed.status_code, failed.json()["error"]["code"]) == (502, "server_failed")
    left = backend.left()
    assert left == 600 - counts(server, 0)[0].tokens  # the server may have read it
    with running(settings) as other:
        assert text_of(other.say("the quick brown fox", message_id="m1")) == WHOLE
    assert counts(server, -1) == counts(server, 0)
    assert backend.left() == left


def test_a_stream_that_breaks_ends_with_an_error(backend: Running, server: ScriptedServer) -> None:
    server.script.extend([cut(900), error(400, "invalid_value")])
    broken = backend.say("the quick brown fox", message_id="m1")
    assert broken[-1]["error"]["code"] == "server_failed"
    assert len(broken) > 1
    assert text_of(backend.say("the quick brown fox", message_id="m1")) == WHOLE


def test_two_messages_at_once_are_answered_in_order(backend: Running, server: ScriptedServer) -> None:
    gate = Gate()
    server.script.append(gate)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(backend.say, "the quick brown fox")
        eventually(lambda: len(server.frames) == 1)
        second = pool.submit(backend.say, "what now")
        eventually(lambda: _in_progress(backend) == 2)
        assert len(server.frames) == 1
        gate.open()
        assert text_of(first.result()) == WHOLE
        assert second.result()[-1]["history"] == {"kept": 1, "left_out": 0}
    assert counts(server, 1)[:1] == counts(server, 0)


def _in_progress(backend: Running) -> int:
    (line,) = [one for one in backend.get("/metrics").text.splitlines() if one.startswith("backend_messages_in_pro")]
    return round(float(line.split()[1]))


def test_a_chat_takes_a_few_messages_at_once(server: ScriptedServer, settings: Settings) -> None:
    gate = Gate()
    server.script.append(gate)
    with running(replace(settings, most_waiting=1)) as backend, ThreadPoolExecutor(1) as pool:
        first = pool.submit(backend.say, "the quick brown fox")
        eventually(lambda: len(server.frames) == 1)
        refused = backend.post("what now")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "chat_busy")
        assert "retry-after" in refused.headers
        gate.open()
        first.result()


def test_a_process_takes_only_so_many_messages(server: ScriptedServer, settings: Settings) -> None:
    gate = Gate()
    server.script.append(gate)
    with running(replace(settings, most_answers=1)) as backend, ThreadPoolExecutor(1) as pool:
        first = pool.submit(backend.say, "the quick brown fox")
        eventually(lambda: len(server.frames) == 1)
        refused = backend.post("what now", chat="2")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_busy")
        gate.open()
        first.result()


def test_an_answer_goes_on_when_the_app_leaves(backend: Running, server: ScriptedServer) -> None:
    rest = Gate(after_events=1)
    server.script.append(rest)
    with backend.stream("the quick brown fox", "m1") as response:
        assert next(response.iter_lines()).startswith("data: ")
    rest.open()  # only after the app has gone
    assert text_of(backend.say("the quick brown fox", message_id="m1")) == WHOLE
    assert len(server.frames) == 1


def test_the_oldest_turns_are_left_out_of_a_full_context(backend: Running, server: ScriptedServer) -> None:
    for _ in range(3):
        last = backend.say("the quick brown fox jumps over the lazy dog")[-1]
    assert last["history"] == {"kept": 2, "left_out": 0}
    full = server.decode(server.frames[-1])
    server.context_length = sum(one.tokens for one in full.segments) + PLAN.answer_tokens
    with running(backend.backend.settings) as other:  # which learns the length
        last = other.say("the quick brown fox jumps over the lazy dog")[-1]
        assert last["history"] == {"kept": 2, "left_out": 1}
        assert len(counts(server, -1)) == 3
        too_long = other.post("fox " * 400)
        assert (too_long.status_code, too_long.json()["error"]["code"]) == (413, "message_too_long")


def test_a_chat_under_another_level_begins_anew(server: ScriptedServer, settings: Settings) -> None:
    with running(settings) as backend:
        backend.say("the quick brown fox")
    upgraded = replace(settings, plans={**settings.plans, "free": settings.plans["plus"]})
    with running(upgraded) as backend:
        assert backend.say("what now")[-1]["history"] == {"kept": 0, "left_out": 1}
    assert len(counts(server, 1)) == 1


def test_a_deleted_chat_begins_anew(backend: Running, server: ScriptedServer) -> None:
    backend.say("the quick brown fox")
    left = backend.left()
    url = f"{backend.url}/chats/1"
    deleted = httpx.delete(url, headers={"authorization": "Bearer alice-token"}, trust_env=False)
    assert deleted.status_code == 204
    assert backend.left() == left
    assert backend.say("what now")[-1]["history"] == {"kept": 0, "left_out": 0}


@pytest.mark.parametrize(
    ("content", "field", "said"),
    [
        ({"id": "1", "text": ""}, "text", "at least 1 character, got 0 characters"),
        ({"id": "1", "text": "  "}, "text", "at least 1 character"),
        ({"id": "1", "text": "x" * 4001}, "text", "at most 4000 characters, got 4001 characters"),
        ({"id": "1", "text": 7}, "text", "valid string, got a int"),
        ({"id": "a b", "text": "x"}, "id", "match pattern"),
        ({"text": "secret"}, "id", "required"),
    ],
)
def test_an_invalid_message_is_refused_by_field(
    backend: Running, content: dict[str, object], field: str, said: str
) -> None:
    headers = {"authorization": "Bearer alice-token"}
    refused = httpx.post(f"{backend.url}/chats/1/messages", json=content, headers=headers, trust_env=False)
    told = refused.json()["error"]
    assert (refused.status_code, told["code"], told["field"]) == (422, "invalid_request", field)
    assert said in told["message"]
    assert "secret" not in refused.text


def test_strangers_are_refused(backend: Running) -> None:
    assert backend.post("a", token="nobody").status_code == 401
    assert backend.get("/budget", "nobody").status_code == 401
    assert backend.post("a", chat="a b").status_code == 422


def test_an_end_of_the_process_ends_streams_with_an_event(server: ScriptedServer, settings: Settings) -> None:
    server.script.append(Gate(after_events=1))
    with running(replace(settings, drain=0.05)) as backend:
        with backend.stream("the quick brown fox", "m1") as response:
            lines = response.iter_lines()
            first = next(lines)
            backend.end()
            *_, last = events_of("\n".join([first, *lines]))
        assert last["error"]["code"] == "restarting"
    with running(settings) as other:
        assert text_of(other.say("the quick brown fox", message_id="m1")) == WHOLE
        assert counts(server, 1) == counts(server, 0)
        assert other.left() == 600 - counts(server, 0)[0].tokens


def test_an_answer_may_end_while_the_process_ends(server: ScriptedServer, settings: Settings) -> None:
    rest = Gate(after_events=1)
    server.script.append(rest)
    with running(settings) as backend, backend.stream("the quick brown fox", "m1") as response:
        lines = response.iter_lines()
        first = next(lines)
        backend.end()
        eventually(lambda: backend.backend.is_draining)
        rest.open()
        assert text_of(events_of("\n".join([first, *lines]))) == WHOLE


def test_a_process_that_ends_takes_nothing_new(backend: Running, server: ScriptedServer) -> None:
    backend.backend.is_draining = True
    refused = backend.post("the quick brown fox")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "restarting")
    assert refused.headers["retry-after"] == "1"
    assert backend.get("/readyz").status_code == 503
    assert server.frames == []
