"""The room of the server's context is respected before anything is drawn, charged or sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_lib import ContextFullError, InvalidRequestError, private, public
from client_lib.ledger import Budget, Ledger, SQLiteStore
from tests.client_lib.conftest import Calls
from tests.support.scripted_server import ScriptedServer, error, expected_text, expected_tokens

Connect = Callable[..., Calls]
PROMPT = "my doctor told me that the test was positive, what shall I do now?"


def soft_rows(server: ScriptedServer, variant: str = "open") -> int:
    return server.bundle.variants[variant].soft_prompt_length


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(1e6, 1e-5))


@pytest.mark.parametrize("streams", [False, True])
def test_max_tokens_is_cut_to_the_room(connect: Connect, server: ScriptedServer, streams: bool) -> None:
    calls = connect()
    tokens = calls.call("count_tokens", PROMPT, variant="open")
    server.context_length = soft_rows(server) + tokens + 9
    calls = connect()
    assert calls.call("room", variant="open") == tokens + 9
    ask = calls.stream if streams else calls.complete
    result: Any = ask(PROMPT, variant="open", max_tokens=4096)
    completion = result[1] if streams else result
    assert completion.text == expected_text(expected_tokens(9))
    assert completion.finish_reason == "length"
    assert server.decode(server.frames[0]).sampling.max_tokens == 9
    calls.complete(PROMPT, variant="open", max_tokens=8)  # what fits is not changed
    assert server.decode(server.frames[1]).sampling.max_tokens == 8
    assert server.requests_to("/v1/models") == []  # the bundle said it


@pytest.mark.parametrize("kind", ["text", "encoded"])
def test_a_prompt_without_room_is_neither_charged_nor_sent(
    connect: Connect, server: ScriptedServer, ledger: Ledger, kind: str
) -> None:
    before = connect()
    tokens = before.call("count_tokens", PROMPT, variant="open")
    prompt = PROMPT if kind == "text" else before.call("encode", PROMPT, variant="open")
    server.context_length = soft_rows(server) + tokens  # room for the prompt, none for an answer
    calls = connect(ledger=ledger, subject="ann")
    with pytest.raises(ContextFullError) as caught:
        calls.complete(prompt, variant="open", max_tokens=1)
    assert (caught.value.prompt_tokens, caught.value.room) == (tokens, tokens)
    assert (caught.value.code, caught.value.field) == ("context_length_exceeded", "prompt")
    assert "doctor" not in str(caught.value)
    assert server.frames == []
    assert ledger.spent("ann").epsilon == 0
    assert isinstance(caught.value, InvalidRequestError)


def test_each_variant_has_its_own_soft_prompt(connect: Connect, server: ScriptedServer) -> None:
    server.context_length = 400
    calls = connect()
    for name, variant in server.bundle.variants.items():
        assert calls.call("room", variant=name) == 400 - variant.soft_prompt_length
    assert calls.call("room", variant="clear") == 400


def test_a_pinned_bundle_from_the_cache_asks_for_the_models_once(connect: Connect, server: ScriptedServer) -> None:
    server.context_length = 300
    connect().call("bundle")
    asked = len(server.requests_to("/v1/bundle"))
    calls = connect(fingerprint=server.bundle.fingerprint)
    for _ in range(2):
        calls.complete([public("hello"), private("you")], variant="open", max_tokens=4000)
    assert len(server.requests_to("/v1/bundle")) == asked
    assert len(server.requests_to("/v1/models")) == 1
    assert server.decode(server.frames[0]).sampling.max_tokens < 300


def test_a_server_that_states_nothing_decides_itself(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    assert calls.call("room", variant="open") is None
    calls.complete(PROMPT, variant="open", max_tokens=4096)
    server.script.append(error(400, "context_length_exceeded"))
    with pytest.raises(ContextFullError) as caught:
        calls.complete(PROMPT, variant="open")
    assert (caught.value.prompt_tokens, caught.value.room, caught.value.status) == (None, None, 400)


def test_a_statement_that_the_server_contradicts_is_asked_for_again(connect: Connect, server: ScriptedServer) -> None:
    server.context_length = 4000
    calls = connect()
    server.script.append(error(400, "context_length_exceeded"))
    with pytest.raises(ContextFullError):
        calls.complete(PROMPT, variant="open", max_tokens=500)
    server.context_length = soft_rows(server) + 100
    assert calls.complete(PROMPT, variant="open", max_tokens=500).finish_reason == "length"
    assert server.decode(server.frames[-1]).sampling.max_tokens < 100
