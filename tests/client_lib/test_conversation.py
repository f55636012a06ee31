"""Conversations: each occurrence of a span is quantized once; a saved memory needs its key."""

from __future__ import annotations

import json
import re
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client_lib import (
    BundleOutdatedError,
    ChatTemplate,
    Client,
    EncodedPrompt,
    InvalidRequestError,
    MemoryInvalidError,
    Message,
    private,
    public,
)
from client_lib.prompts.encoder import Encoder
from client_lib.prompts.span_memory import Recall, SpanMemory, open_sealed, seal
from del_core.wire import PrivateSegment
from tests.client_lib.conftest import SHORT_PAUSES, Calls
from tests.client_lib.test_hooks import Ledger
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, cut, error, reset

Connect = Callable[..., Calls]
# 30 tokens and more, of 8 coordinates with 15 trials: two draws agree with probability far below
# 1e-60.
FIRST = "my doctor told me that the test was positive and I am afraid " * 2
SECOND = "please write a short answer to this letter for my sister " * 2
KEY = bytes(range(32))


def counts(server: ScriptedServer, index: int) -> list[PrivateSegment]:
    """The private segments of a frame that arrived."""
    return [s for s in server.decode(server.frames[index]).segments if isinstance(s, PrivateSegment)]


def run(calls: Calls, conversation: object, method: str, *arguments: object, **options: object) -> None:
    """A call of a conversation of either kind."""
    result = getattr(conversation, method)(*arguments, **options)
    if hasattr(result, "__await__"):
        calls._runner.run(result)  # type: ignore[attr-defined]


def sessions(server: ScriptedServer) -> list[str | None]:
    """The session ids of the prompts that arrived."""
    return [received.headers.get("x-session-id") for received in server.requests_to("/v1/private/completions")]


def converse(calls: Calls, **options: object) -> object:
    return calls.client.conversation(**options)  # type: ignore[attr-defined]


def test_history_is_sent_as_it_was_and_paid_for_once(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger()
    calls = connect(variant="open", ledger=ledger, subject="ann")
    conversation = converse(calls)
    run(calls, conversation, "complete", [public("User:"), private(FIRST)])
    paid = dict(ledger.charged)
    run(calls, conversation, "complete", [public("User:"), private(FIRST), public("User:"), private(SECOND)])
    assert counts(server, 1)[0] == counts(server, 0)[0]
    assert set(paid) < set(ledger.charged)
    assert len(ledger.charged) == 2
    run(calls, conversation, "complete", [private(SECOND), private(FIRST)])
    assert counts(server, 2) == [counts(server, 1)[1], counts(server, 0)[0]]
    assert len(ledger.charged) == 2


def test_a_turn_is_encoded_and_saved_before_it_is_sent(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger()
    calls = connect(variant="open", ledger=ledger, subject="ann")
    conversation = converse(calls, template=TEMPLATE)
    encoded = encode(calls, conversation, [Message("user", FIRST)])
    saved = conversation.save(KEY)  # type: ignore[attr-defined]
    assert (server.frames, ledger.charged) == ([], {})
    run(calls, conversation, "complete", encoded)
    again = encode(calls, converse(calls, template=TEMPLATE, memory=saved, key=KEY), [Message("user", FIRST)])
    assert again.draws == encoded.draws
    run(calls, conversation, "complete", again)
    assert counts(server, 0) == counts(server, 1)
    assert len(ledger.charged) == 1
    fresh = encode(calls, conversation, [Message("user", FIRST)], fresh=True)
    assert fresh.draws != encoded.draws


def encode(calls: Calls, conversation: object, *arguments: object, **options: object) -> EncodedPrompt:
    result = conversation.encode(*arguments, **options)  # type: ignore[attr-defined]
    return calls._runner.run(result) if hasattr(result, "__await__") else result  # type: ignore[attr-defined,no-any-return]


def test_two_places_with_the_same_text_have_noise_of_their_own(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open")
    conversation = converse(calls)
    for _ in range(2):
        run(calls, conversation, "complete", [private(FIRST), private(FIRST)])
    first, second = counts(server, 0)
    assert first != second
    assert counts(server, 1) == [first, second]
    assert server.frames[0] == server.frames[1]


def test_fresh_noise_is_an_explicit_choice(connect: Connect, server: ScriptedServer) -> None:
    ledger = Ledger()
    calls = connect(variant="open", ledger=ledger, subject="ann")
    conversation = converse(calls)
    run(calls, conversation, "complete", FIRST)
    run(calls, conversation, "complete", FIRST, fresh=True)
    run(calls, conversation, "complete", FIRST)
    conversation.forget()  # type: ignore[attr-defined]
    run(calls, conversation, "complete", FIRST)
    assert counts(server, 0) != counts(server, 1)
    assert counts(server, 1) == counts(server, 2)
    assert counts(server, 3) not in (counts(server, 0), counts(server, 1))
    assert len(ledger.charged) == 3


def test_requests_of_a_conversation_name_it(connect: Connect, server: ScriptedServer) -> None:
    """One random id as long as the counts stay, also in retries; none for other calls."""
    calls = connect(variant="open", api_key="key", subject="ann")
    one, other = converse(calls), converse(calls)
    server.script.extend([reset, error(503, "overloaded", {"retry-after": "0"})])
    run(calls, one, "complete", FIRST)
    run(calls, one, "complete", [private(FIRST), private(SECOND)])
    run(calls, one, "complete", [public("nothing private")])
    run(calls, other, "complete", FIRST)
    calls.complete(FIRST)
    *first, second, none = sessions(server)
    assert len(first) == 5
    assert len(set(first)) == 1
    assert first[0] is not None
    assert second is not None
    assert first[0] != second
    assert none is None
    request, other_request = (server.requests_to("/v1/private/completions")[index] for index in (0, -1))
    assert set(request.headers) - set(other_request.headers) == {"x-session-id"}
    assert all(re.fullmatch(r"[0-9a-f]{32}", session) for session in (first[0], second))


@pytest.mark.parametrize("way", ["fresh", "forget"])
def test_fresh_noise_is_not_shown_to_be_of_the_same_conversation(
    connect: Connect, server: ScriptedServer, way: str
) -> None:
    calls = connect(variant="open")
    conversation = converse(calls)
    run(calls, conversation, "complete", FIRST)
    if way == "forget":
        conversation.forget()  # type: ignore[attr-defined]
    run(calls, conversation, "complete", FIRST, fresh=way == "fresh")
    run(calls, conversation, "complete", [private(FIRST), private(SECOND)])
    before, fresh, after = sessions(server)
    assert before != fresh == after
    assert counts(server, 0)[0] != counts(server, 1)[0] == counts(server, 2)[0]


def test_a_stream_of_a_conversation_names_it(server: ScriptedServer, tmp_path: Path) -> None:
    server.script.extend([cut(500), reset])
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, variant="open") as client:
        conversation = client.conversation()
        with conversation.stream(FIRST, max_tokens=12) as stream:
            list(stream)
        saved = conversation.save(KEY)
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, variant="open") as client:
        client.conversation(memory=saved, key=KEY).complete([private(FIRST), private(SECOND)])
    assert len(sessions(server)) == 4
    assert len(set(sessions(server))) == 1


def test_a_saved_conversation_without_a_session_id_gets_one() -> None:
    """What an older version saved; and an id that is none is refused."""
    memory = SpanMemory()
    content = json.loads(open_sealed(memory.save(KEY), KEY))
    session = content.pop("session")
    loaded = json.loads(open_sealed(SpanMemory.load(seal(json.dumps(content).encode(), KEY), KEY).save(KEY), KEY))
    assert re.fullmatch(r"[0-9a-f]{32}", loaded["session"])
    assert loaded["session"] != session
    for bad in ("", "a b", session + "\r\nx: y", 7, None):
        with pytest.raises(MemoryInvalidError):
            SpanMemory.load(seal(json.dumps({**content, "session": bad}).encode(), KEY), KEY)


def test_a_turn_has_an_idempotency_key_as_any_call(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    run(calls, converse(calls, variant="open"), "complete", FIRST, idempotency_key="turn-1")
    assert server.requests_to("/v1/private/completions")[0].headers["idempotency-key"] == "turn-1"


def test_another_variant_or_conversation_shares_nothing(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    for variant in ("open", "open", "strict"):
        run(calls, converse(calls, variant=variant), "complete", FIRST)
    assert counts(server, 0) != counts(server, 1)
    assert counts(server, 2) != counts(server, 0)


def test_streams_of_a_conversation_reuse_counts(server: ScriptedServer, tmp_path: Path) -> None:
    """Also over a broken stream, a refusal and a dropped connection."""
    server.script.extend([reset, cut(400), error(503, "overloaded", {"retry-after": "0"})])
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, variant="open") as client:
        conversation = client.conversation()
        with conversation.stream(FIRST, max_tokens=12) as stream:
            assert sum(len(chunk.token_ids) for chunk in stream) == 12
        conversation.complete([private(FIRST), private(SECOND)])
    assert len(server.frames) == 5
    assert len({tuple(counts(server, index)[:1]) for index in range(5)}) == 1


def test_threads_of_one_conversation_draw_once(server: ScriptedServer, tmp_path: Path) -> None:
    start = threading.Barrier(6)
    with (
        Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path, variant="open") as client,
        ThreadPoolExecutor(6) as pool,
    ):
        conversation = client.conversation()

        def use(_: int) -> None:
            start.wait(10)
            conversation.complete(FIRST)

        list(pool.map(use, range(6)))
    assert len({tuple(counts(server, index)) for index in range(6)}) == 1


def test_what_is_forbidden_is_remembered_but_paid_for_when_it_is_sent(connect: Connect, server: ScriptedServer) -> None:
    """Counts of a refused call were not sent; the next call sends and charges them."""
    ledger = Ledger(OSError(28, "full"))
    calls = connect(variant="open", ledger=ledger, subject="ann")
    conversation = converse(calls)
    for _ in range(2):
        with pytest.raises(Exception, match="ledger"):
            run(calls, conversation, "complete", FIRST)
    ledger.refuse = None
    run(calls, conversation, "complete", FIRST)
    assert len({draws for _, _, draws in ledger.calls}) == 1
    assert len(server.frames) == 1


def test_a_new_table_does_not_mean_fresh_noise_unasked(
    connect: Connect, server: ScriptedServer, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "other", table_seed=2)
    calls = connect(variant="open", accept=other.fingerprint)
    conversation = converse(calls)
    run(calls, conversation, "complete", FIRST)
    server.bundle = other
    for _ in range(2):  # the first finds out, the second has the new bundle and must not spend either
        with pytest.raises(BundleOutdatedError):
            run(calls, conversation, "complete", FIRST)
    run(calls, conversation, "complete", FIRST, fresh=True)
    assert counts(server, -1) != counts(server, 0)


# --- at rest --------------------------------------------------------------------------------------


def test_a_saved_conversation_goes_on(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open")
    conversation = converse(calls)
    run(calls, conversation, "complete", [private(FIRST), private(FIRST)])
    saved = conversation.save(KEY)  # type: ignore[attr-defined]
    ledger = Ledger()
    other = connect(variant="open", ledger=ledger, subject="ann")
    run(other, converse(other, memory=saved, key=KEY), "complete", [private(FIRST), private(FIRST), private(SECOND)])
    assert counts(server, 1)[:2] == counts(server, 0)
    assert len(ledger.charged) == 3


def test_what_is_saved_shows_nothing_and_never_twice_the_same(encoded_memory: SpanMemory) -> None:
    saved = [encoded_memory.save(KEY) for _ in range(2)]
    assert saved[0] != saved[1]
    for data in saved:
        for canary in (b"doctor", b"spans", b"codes", b"draw"):
            assert canary not in data


@pytest.fixture
def encoded_memory(server: ScriptedServer) -> SpanMemory:
    memory = SpanMemory()
    encoder = Encoder(server.bundle)
    encoder.draw(encoder.tokenize(FIRST, "open"), "open", Recall(memory))
    return memory


def test_every_altered_byte_is_noticed(encoded_memory: SpanMemory) -> None:
    saved = encoded_memory.save(KEY)
    for place in [*range(40), *range(40, len(saved), 97), *range(len(saved) - 20, len(saved))]:
        altered = bytearray(saved)
        altered[place] ^= 1 << secrets.randbelow(8)
        with pytest.raises(MemoryInvalidError):
            SpanMemory.load(bytes(altered), KEY)
    for length in (0, 4, 5, 17, 32, len(saved) - 1):
        with pytest.raises(MemoryInvalidError):
            SpanMemory.load(saved[:length], KEY)


def test_another_key_is_refused(encoded_memory: SpanMemory) -> None:
    with pytest.raises(MemoryInvalidError, match="another key") as caught:
        SpanMemory.load(encoded_memory.save(KEY), KEY[::-1])
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("key", [b"", b"x" * 16, b"x" * 33, "x" * 32, None])
def test_keys_have_32_bytes(encoded_memory: SpanMemory, key: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        encoded_memory.save(key)
    assert caught.value.field == "key"
    assert repr(key) not in str(caught.value)


def test_a_saved_conversation_needs_its_key(connect: Connect, encoded_memory: SpanMemory) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        converse(connect(variant="open"), memory=encoded_memory.save(KEY))
    assert caught.value.field == "key"


@pytest.mark.parametrize("method", ["save", "load"])
def test_without_the_package_the_extra_is_named(
    encoded_memory: SpanMemory, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(InvalidRequestError, match=r"del-serve\[memory\]"):
        encoded_memory.save(KEY) if method == "save" else SpanMemory.load(b"DELM", KEY)


def test_representations_show_nothing(connect: Connect) -> None:
    calls = connect(variant="open")
    conversation = converse(calls, template=ChatTemplate.simple({"user": "U: "}, answer="A:"))
    message = Message("user", FIRST)
    run(calls, conversation, "complete", [message])
    memory = conversation._memory  # type: ignore[attr-defined]
    encoded = calls.call("encode", FIRST)
    shown = repr((message, conversation, memory, encoded, encoded.draws, encoded.segments, list(memory._kept.values())))
    codes = encoded.segments[1].codes
    for canary in ("doctor", str(codes[0])[1:-1], repr(encoded.draws[0].id), "U: ", KEY.hex()):
        assert canary not in shown


# --- chat -----------------------------------------------------------------------------------------


def test_messages_go_through_the_template(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open")
    template = ChatTemplate.simple({"user": "User: ", "assistant": "Assistant: "}, answer="Assistant:")
    conversation = converse(calls, template=template)
    history = [Message("user", FIRST)]
    run(calls, conversation, "complete", history)
    history += [Message("assistant", public("I see.")), Message("user", SECOND)]
    run(calls, conversation, "complete", history)
    assert counts(server, 1)[0] == counts(server, 0)[0]
    assert [len(counts(server, index)) for index in range(2)] == [1, 2]


def test_messages_need_a_template(connect: Connect) -> None:
    calls = connect(variant="open")
    with pytest.raises(InvalidRequestError) as caught:
        run(calls, converse(calls), "complete", [Message("user", "hello")])
    assert caught.value.field == "template"


TEMPLATE = ChatTemplate.simple({"user": "User: ", "assistant": "You: "}, answer="You: ")


def ask(calls: Calls, conversation: object, messages: list[Message], **options: object) -> str:
    """Return the answer to a chat."""
    result = conversation.complete(messages, max_tokens=4, **options)  # type: ignore[attr-defined]
    return (calls._runner.run(result) if hasattr(result, "__await__") else result).text  # type: ignore[attr-defined]


def test_answers_of_the_server_are_public(connect: Connect, server: ScriptedServer) -> None:
    """The same rule as the proxy's: exactly its answer, at exactly its place."""
    calls = connect(variant="open")
    conversation = converse(calls, template=TEMPLATE)
    question, more = Message("user", FIRST.strip()), Message("user", SECOND.strip())
    answer = ask(calls, conversation, [question])
    own = Message("assistant", answer + "\n")
    ask(calls, conversation, [question, own, more])
    assert len(counts(server, 1)) == 2
    edited = Message("assistant", answer + "!")
    ask(calls, conversation, [question, edited, more])
    assert len(counts(server, 2)) == 3
    ask(calls, conversation, [more, own, question])
    assert len(counts(server, 3)) == 3
    saved = conversation.save(KEY)  # type: ignore[attr-defined]
    ask(calls, converse(calls, template=TEMPLATE, memory=saved, key=KEY), [question, own, more])
    assert counts(server, 4) == counts(server, 1)
    # Beside new noise for the question, the answer would link it with the old.
    ask(calls, conversation, [question, own, more], fresh=True)
    ask(calls, conversation, [question, own, more])
    assert len(counts(server, 5)) == len(counts(server, 6)) == 3


def test_answers_can_be_private(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(variant="open")
    conversation = converse(calls, template=TEMPLATE, private_answers=True)
    question = Message("user", FIRST.strip())
    answer = Message("assistant", ask(calls, conversation, [question]))
    ask(calls, conversation, [question, answer, Message("user", SECOND.strip())])
    assert len(counts(server, 1)) == 3


def test_answers_in_a_stream_are_noted_at_its_end(server: ScriptedServer, tmp_path: Path) -> None:
    with Client(server.url, cache_dir=tmp_path, retry=SHORT_PAUSES) as client:
        conversation = client.conversation(variant="open", template=TEMPLATE)
        question = Message("user", FIRST.strip())
        with conversation.stream([question], max_tokens=4) as stream:
            answer = Message("assistant", "".join(chunk.text for chunk in stream))
        conversation.complete([question, answer, Message("user", SECOND.strip())], max_tokens=4)
    assert len(counts(server, 1)) == 2
