"""A chat in a full context, and answers that the server knows because it wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from client_lib.ledger import Budget, Ledger, SQLiteStore
from del_core.wire import PrivateSegment, PublicSegment
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, expected_text, expected_tokens

QUESTIONS = [
    "my doctor told me that the test was positive, what shall I do now?",
    "the quick brown fox jumps over the lazy dog, and I am so very tired.",
    "please write a short answer to this letter for my sister and me.",
    "is there a hospital near the river that is open in the night?",
    "shall I tell the people at my work about it, or wait?",
    "thank you very much, and how long will it take in all?",
]
SYSTEM = {"role": "system", "content": "you are a kind doctor"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def ask(proxy: RunningProxy, messages: list[dict[str, str]], **fields: Any) -> Any:
    headers = fields.pop("headers", None)
    body = {"model": "open", "messages": messages, "max_tokens": 24, **fields}
    return proxy.post("/v1/chat/completions", body, headers=headers)


def text_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def converse(proxy: RunningProxy, turns: int, **fields: Any) -> list[dict[str, str]]:
    """A chat of some turns, as an application holds it."""
    messages: list[dict[str, str]] = []
    for question in QUESTIONS[:turns]:
        messages.append(user(question))
        messages.append(assistant(text_of(ask(proxy, messages, **fields))))
    return messages


def counts(server: ScriptedServer, index: int = -1) -> list[np.ndarray]:
    request = server.decode(server.frames[index])
    return [segment.codes for segment in request.segments if isinstance(segment, PrivateSegment)]


def public_text(server: ScriptedServer, index: int = -1) -> str:
    tokenizer = Tokenizer.from_file(str(server.bundle.tokenizer_path))
    segments = server.decode(server.frames[index]).segments
    ids = [token for segment in segments if isinstance(segment, PublicSegment) for token in segment.token_ids]
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_the_server_wrote_is_public(
    make_proxy: MakeProxy, server: ScriptedServer, streams: bool
) -> None:
    proxy = make_proxy()
    answer = expected_text(expected_tokens(24))
    first = ask(proxy, [user(QUESTIONS[0])], stream=streams)
    assert first.status_code == 200
    ask(proxy, [user(QUESTIONS[0]), assistant(f" {answer}\n"), user(QUESTIONS[1])])
    assert len(counts(server)) == 2  # the two questions
    assert np.array_equal(counts(server)[0], counts(server, 0)[0])
    shown = public_text(server)
    assert "w3" in shown.replace(" ", "")  # the answer begins so
    assert "doctor" not in shown


@pytest.mark.parametrize(
    ("messages", "private_ones"),
    [
        ([user(QUESTIONS[0]), assistant("I am sorry"), user("and now?")], 3),  # not its words
        ([user(QUESTIONS[1]), assistant("ANSWER"), user("and now?")], 3),  # not to this question
        ([SYSTEM, user(QUESTIONS[0]), assistant("ANSWER"), user("and now?")], 4),  # not in this chat
        ([user(QUESTIONS[0]), user("ANSWER")], 2),  # a person says it
        ([user(QUESTIONS[0]), assistant("ANSWER"), user("and now?")], 2),
    ],
)
def test_only_its_own_words_at_their_place_are_public(
    proxy: RunningProxy, server: ScriptedServer, messages: list[dict[str, str]], private_ones: int
) -> None:
    written = text_of(ask(proxy, [user(QUESTIONS[0])]))
    text_of(ask(proxy, [{**one, "content": one["content"].replace("ANSWER", written)} for one in messages]))
    assert len(counts(server)) == private_ones


@pytest.mark.parametrize(
    "change",
    [{"model": "strict"}, {"headers": {"x-del-subject": "bob"}}, {"headers": {"x-del-noise": "fresh"}}],
)
def test_an_answer_does_not_link_two_drawings(
    proxy: RunningProxy, server: ScriptedServer, change: dict[str, Any]
) -> None:
    """Under another variant or subject, and with fresh noise, the question is drawn anew."""
    messages = [*converse(proxy, 1), user(QUESTIONS[1])]
    assert ask(proxy, messages, **change).status_code == 200
    assert len(counts(server)) == 3


def test_an_answer_behind_forgotten_counts_is_private(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(remember_bytes=9_000)
    messages = [*converse(proxy, 1), user(QUESTIONS[1])]
    for number in range(20):  # other chats take the room
        ask(proxy, [user(f"{QUESTIONS[2]} {number}")])
    assert ask(proxy, messages).status_code == 200
    assert len(counts(server)) == 3


def test_epsilon_of_six_turns(make_proxy: MakeProxy, tmp_path: Path) -> None:
    """Without the answers a chat costs what its questions cost."""
    spent = {}
    for private_answers in (True, False):
        ledger = Ledger(SQLiteStore(tmp_path / f"{private_answers}.db"), budget=Budget(1e6, 1e-5))
        proxy = make_proxy({"ledger": ledger}, private_answers=private_answers, subject="ann")
        converse(proxy, 6)
        spent[private_answers] = ledger.spent("ann").epsilon
    print(spent)
    assert spent[False] < 0.6 * spent[True]


# --- the context's end ----------------------------------------------------------------------------


@pytest.fixture
def narrow(make_proxy: MakeProxy, server: ScriptedServer) -> RunningProxy:
    server.context_length = server.bundle.variants["open"].soft_prompt_length + 240
    return make_proxy()


def test_the_oldest_turns_are_left_out(narrow: RunningProxy, server: ScriptedServer) -> None:
    messages = [SYSTEM]
    dropped = []
    for question in QUESTIONS:
        messages.append(user(question))
        answer = ask(narrow, messages)
        messages.append(assistant(text_of(answer)))
        dropped.append(int(answer.headers.get("x-del-dropped-messages", 0)))
        request = server.decode(server.frames[-1])
        assert request.prompt_tokens + request.sampling.max_tokens <= 240
    assert dropped == sorted(dropped)
    assert 0 < dropped[-1] < len(messages) - 2
    assert all(number % 2 == 0 for number in dropped)  # whole turns
    # The system message and what is kept of the history have the counts of the first time.
    first, last = counts(server, 0), counts(server)
    assert np.array_equal(first[0], last[0])
    kept = len(QUESTIONS) - dropped[-1] // 2
    assert len(last) == 1 + kept
    for index in range(1, kept):
        assert any(np.array_equal(last[index], earlier) for earlier in counts(server, -2))


def test_a_message_that_alone_is_too_long(make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path) -> None:
    server.context_length = server.bundle.variants["open"].soft_prompt_length + 60
    ledger = Ledger(SQLiteStore(tmp_path / "ledger.db"), budget=Budget(1e6, 1e-5))
    proxy = make_proxy({"ledger": ledger}, subject="ann")
    long = " ".join(QUESTIONS)
    for route, fields in (("chat/completions", {"messages": [user(long)]}), ("completions", {"prompt": long})):
        answer = proxy.post(f"/v1/{route}", {"model": "open", "max_tokens": 4, **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert error["param"] in fields
        assert "59 tokens" in error["message"]
        assert "soft" not in error["message"]
    assert server.frames == []
    assert ledger.spent("ann").epsilon == 0


def test_without_trimming_a_full_context_is_refused(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    server.context_length = server.bundle.variants["open"].soft_prompt_length + 60
    proxy = make_proxy(trim_history=False)
    messages = [user(QUESTIONS[0]), assistant("yes"), user(QUESTIONS[1]), assistant("no"), user(QUESTIONS[2])]
    refused = ask(proxy, messages)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert server.frames == []


def test_a_length_above_the_room_is_cut(narrow: RunningProxy, server: ScriptedServer) -> None:
    answer = ask(narrow, [user("hello")], max_tokens=1_000_000)
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    request = server.decode(server.frames[-1])
    assert request.prompt_tokens + request.sampling.max_tokens == 240


def test_an_old_message_that_no_frame_holds_is_left_out(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    server.context_length = server.bundle.variants["open"].soft_prompt_length + 240
    answer = ask(make_proxy(), [user("river " * 100_000), assistant("yes"), user(QUESTIONS[0])])
    assert text_of(answer) == expected_text(expected_tokens(24))
    assert answer.headers["x-del-dropped-messages"] == "2"
    assert len(counts(server)) == 1
