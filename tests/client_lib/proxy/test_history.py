"""A history is quantized once: growing conversations, repeated prompts, and the limits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers

from client_lib import EncodedPrompt, private, public
from client_lib.prompts.memo import MAX_REDRAWS
from client_lib.proxy import ProxySettings
from client_lib.proxy.memory import CountMemory
from del_core.bundle import ChatFormat
from del_core.wire import PrivateSegment
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.bundle import make_bundle, make_tokenizer
from tests.support.malicious import dated
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, error

# Long enough that equal counts by chance do not happen: over 10 tokens of 8 coordinates with 15
# trials each.
FIRST = {"role": "user", "content": "my doctor told me that the test was positive, what shall I do now?"}
SECOND = {"role": "assistant", "content": "I am sorry to hear that; please tell me more about it, if you like."}
THIRD = {"role": "user", "content": "the quick brown fox jumps over the lazy dog, and I am so very tired."}


def ask(proxy: RunningProxy, *messages: dict[str, str], subject: str | None = None, **fields: Any) -> None:
    headers = {"x-del-subject": subject} if subject else {}
    headers |= {"x-del-noise": fields.pop("noise")} if "noise" in fields else {}
    body = {"model": "open", "messages": messages, "max_tokens": 2, **fields}
    assert proxy.post("/v1/chat/completions", body, headers=headers).status_code == 200


def counts(server: ScriptedServer, index: int) -> list[np.ndarray]:
    """The counts of the private segments of a request, one array for every message."""
    request = server.decode(server.frames[index])
    return [segment.codes for segment in request.segments if isinstance(segment, PrivateSegment)]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> list[bool]:
    return [np.array_equal(a, b) for a, b in zip(first, second, strict=True)]


def test_a_growing_conversation_sends_its_history_as_it_was(proxy: RunningProxy, server: ScriptedServer) -> None:
    ask(proxy, FIRST)
    ask(proxy, FIRST, SECOND, THIRD)
    ask(proxy, FIRST, SECOND, THIRD, stream=True)  # sent again, in another way
    first, second, third = (counts(server, index) for index in range(3))
    assert (len(first), len(second)) == (1, 3)
    assert same(first, second[:1]) == [True]
    assert same(second, third) == [True, True, True]
    # Every segment is what it would be alone: the beginning-of-text token once, the template around
    # the messages.
    segments = server.decode(server.frames[1]).segments
    assert [isinstance(segment, PrivateSegment) for segment in segments[-2:]] == [True, False]


def test_requests_name_a_session_exactly_as_far_as_they_share_counts(
    proxy: RunningProxy, server: ScriptedServer
) -> None:
    ask(proxy, FIRST)
    ask(proxy, FIRST, SECOND, THIRD)
    ask(proxy, THIRD)
    ask(proxy, FIRST, subject="bob")
    ask(proxy, FIRST, noise="fresh")
    ask(proxy, FIRST, SECOND)
    received = server.requests_to("/v1/private/completions")
    names = [request.headers["x-session-id"] for request in received]
    assert names[0] == names[1]
    assert names[4] == names[5]
    assert len(set(names)) == 4
    shared = {
        (one, other)
        for one in range(6)
        for other in range(6)
        if same(counts(server, one)[:1], counts(server, other)[:1])[0]
    }
    assert shared == {(one, other) for one in range(6) for other in range(6) if names[one] == names[other]}


def test_a_public_beginning_links_nobody(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    """Everybody's prompts begin with the same instructions."""
    proxy = make_proxy(public_system=True)
    for message in (FIRST, THIRD):
        ask(proxy, {"role": "system", "content": "be brief"}, message)
    first, second = (request.headers["x-session-id"] for request in server.requests_to("/v1/private/completions"))
    assert first != second


def test_a_branch_shares_what_is_equal(proxy: RunningProxy, server: ScriptedServer) -> None:
    ask(proxy, FIRST, SECOND, THIRD)
    ask(proxy, FIRST, THIRD, THIRD)
    assert same(counts(server, 0), counts(server, 1))[0]
    # The same text at another place is another span: its counts would tell that it is the same.
    assert not np.array_equal(counts(server, 0)[2], counts(server, 1)[1])
    assert not np.array_equal(counts(server, 0)[2], counts(server, 1)[2])


@pytest.mark.parametrize("change", [{"subject": "bob"}, {"model": "strict"}, {"noise": "fresh"}])
def test_another_subject_variant_or_wish_is_fresh(
    proxy: RunningProxy, server: ScriptedServer, change: dict[str, str]
) -> None:
    ask(proxy, FIRST, subject="alice")
    ask(proxy, FIRST, **{"subject": "alice", **change})
    (first,), (second,) = counts(server, 0), counts(server, 1)
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_fresh_noise_replaces_what_is_remembered(proxy: RunningProxy, server: ScriptedServer) -> None:
    for noise in ({}, {"noise": "fresh"}, {}):
        ask(proxy, FIRST, **noise)
    assert same(counts(server, 1), counts(server, 2)) == [True]


def test_an_unknown_wish_is_refused(proxy: RunningProxy, server: ScriptedServer) -> None:
    answer = proxy.post("/v1/completions", {"model": "open", "prompt": "a"}, headers={"x-del-noise": "none"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-del-noise")
    assert server.frames == []


def test_the_subject_of_the_header_comes_before_those_of_the_body(
    make_proxy: MakeProxy, server: ScriptedServer
) -> None:
    proxy = make_proxy(subject="alice")
    ask(proxy, FIRST)
    ask(proxy, FIRST, user="alice")
    ask(proxy, FIRST, safety_identifier="alice")
    ask(proxy, FIRST, user="bob", safety_identifier="carol", subject="alice")
    ask(proxy, FIRST, user="alice", safety_identifier="carol")
    assert all(same(counts(server, 0), counts(server, index)) == [True] for index in range(1, 5))
    ask(proxy, FIRST, user="bob")
    assert same(counts(server, 0), counts(server, 5)) == [False]


def test_what_failed_is_sent_again_as_it_was(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(client={"max_retries": 0})
    server.script.append(error(503, "overloaded"))
    body = {"model": "open", "prompt": FIRST["content"]}
    assert [proxy.post("/v1/completions", body).status_code for _ in range(2)] == [503, 200]
    assert server.frames[0] == server.frames[1]


def test_two_equal_prompts_at_once_draw_once(proxy: RunningProxy, server: ScriptedServer) -> None:
    threads = [threading.Thread(target=ask, args=(proxy, FIRST)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.frames) == 8
    assert len(set(server.frames)) == 1


def test_without_memory_everything_is_fresh(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(remember_bytes=0)
    ask(proxy, FIRST)
    ask(proxy, FIRST)
    assert same(counts(server, 0), counts(server, 1)) == [False]


def test_a_bundle_that_means_the_same_keeps_the_counts(
    proxy: RunningProxy, server: ScriptedServer, tmp_path: Path
) -> None:
    ask(proxy, FIRST)
    server.bundle = make_bundle(tmp_path / "decoder", norm_limit=0.5)  # another decoder, the same table
    ask(proxy, FIRST, SECOND, THIRD)
    assert same(counts(server, -1)[:1], counts(server, 0)) == [True]


def test_another_bundle_asks_for_a_decision(make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", table_seed=2)
    proxy = make_proxy({"accept": other.fingerprint})
    ask(proxy, FIRST)
    server.bundle = other
    body = {"model": "open", "messages": [FIRST, SECOND, THIRD]}
    refused = proxy.post("/v1/chat/completions", body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "bundle_outdated")
    assert refused.headers["x-should-retry"] == "false"
    assert proxy.post("/v1/chat/completions", body).status_code == 200


def test_new_audits_give_no_second_copy(proxy: RunningProxy, server: ScriptedServer, tmp_path: Path) -> None:
    """The server rotates bundles that differ in the audit's date, and refuses frames at will."""
    body = {"model": "open", "messages": [FIRST]}
    ask(proxy, FIRST)
    for day in range(1, 5):
        server.bundle = dated(tmp_path / f"{day}", f"2026-01-0{day}")
        server.script.extend([error(409, "bundle_outdated")] * 2)
        refused = proxy.post("/v1/chat/completions", body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "bundle_outdated")
        assert proxy.post("/v1/chat/completions", body).status_code == 200
    assert len({counts(server, index)[0].tobytes() for index in range(len(server.frames))}) == 1


def test_stronger_offers_give_a_bounded_number_of_copies(
    proxy: RunningProxy, server: ScriptedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each offer is accepted and changes the meaning of the counts: that is counted, and ends."""
    body = {"model": "open", "messages": [FIRST]}
    ask(proxy, FIRST)
    answers = []
    for step in range(1, 7):
        server.bundle = make_bundle(tmp_path / f"{step}", ratio_numerator=(1 << 29) - 1000 * step)
        answers += [proxy.post("/v1/chat/completions", body) for _ in range(2)]
    assert "the limit of fresh noise" in answers[-1].json()["error"]["message"]
    assert len({counts(server, index)[0].tobytes() for index in range(len(server.frames))}) == 1 + MAX_REDRAWS
    said = [record.getMessage() for record in caplog.records if "fresh noise" in record.getMessage()]
    assert said
    assert "doctor" not in str(said)


# --- the memory itself ----------------------------------------------------------------------------


def _encoded(tokens: int) -> EncodedPrompt:
    return EncodedPrompt("f", "open", (PrivateSegment(np.zeros((tokens, 8), np.uint8)),), ())


def known(memory: CountMemory, names: list[bytes]) -> int:
    """The number of spans of a prompt that are known; the first is private and the last is not."""
    found = memory.recall(names, [private("a"), public("b")])
    return sum(part is not None for part in found)


def test_the_memory_is_bounded_and_drops_the_longest_unused() -> None:
    memory = CountMemory(10_000)
    chains = [memory.names("s", "open", [private(f"text {index}"), public("end")]) for index in range(20)]
    for names in chains:
        known(memory, chains[0])
        for name in names[1:]:
            memory.remember(name, _encoded(10))
    assert known(memory, chains[0]) == 2
    assert known(memory, chains[19]) == 2
    kept = sum(known(memory, names) for names in chains)
    assert 2 < kept <= 10  # an entry has about a thousand bytes
    assert known(memory, chains[10]) == 0
    memory.remember(chains[0][1], _encoded(10_000))  # alone too large
    assert known(memory, chains[0]) == 0
    memory.forget([name for names in chains for name in names])
    for name in chains[0][1:]:
        memory.remember(name, _encoded(80))  # half the room each, so nothing else is left in it
    assert known(memory, chains[0]) == 2


def test_names_are_equal_exactly_as_far_as_prompts_are() -> None:
    memory = CountMemory(1)
    spans = [private("a"), public("b"), private("c")]
    names = memory.names("s", "open", spans)
    assert memory.names("s", "open", spans[:2]) == names[:3]
    for other in (
        memory.names(None, "open", spans),
        memory.names("", "open", spans),
        memory.names("sopen", "", spans),
        memory.names("s", "open", [public("a"), public("b"), private("c")]),
        memory.names("s", "open", [private("ab"), public(""), private("c")]),
        CountMemory(1).names("s", "open", spans),
    ):
        assert not set(other[1:]) & set(names[1:])


def test_a_span_of_which_the_tokenizer_makes_nothing(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer().decode())
    tokenizer.normalizer = normalizers.StripAccents()
    bundle = make_bundle(tmp_path / "bundle", tokenizer_json=tokenizer.to_str().encode())
    with (
        ScriptedServer(bundle).running() as server,
        RunningProxy(server.url, ProxySettings(), cache_dir=tmp_path / "cache").running() as proxy,
    ):
        nothing = {"role": "user", "content": "\u0301\u0301"}
        ask(proxy, FIRST, {"role": "assistant", "content": [{"type": "text", "text": "\u0301"}]}, THIRD)  # type: ignore[dict-item]
        ask(proxy, FIRST, {"role": "assistant", "content": "\u0301"}, THIRD, nothing)
        first, second = counts(server, 0), counts(server, 1)
        assert all(same(first, second[: len(first)]))
        refused = proxy.post("/v1/completions", {"model": "open", "prompt": "\u0301"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


# A header that changes with every turn, and messages whose order depends on how many there are.
RESTLESS = (
    "{{ messages | length }} messages{% for message in messages[messages | length % 2:] %}{{ message.content }}|"
    "{% endfor %}{% for message in messages[:messages | length % 2] %}{{ message.content }}|{% endfor %}"
)


def test_the_template_of_the_bundle_lays_out_chats_and_decides_nothing_else(tmp_path: Path) -> None:
    """Whatever it writes around the messages, every message keeps its counts."""
    bundle = make_bundle(tmp_path / "bundle", chat=ChatFormat(RESTLESS, {}, (7, 9)))
    with ScriptedServer(bundle).running() as server:
        settings = ProxySettings(private_answers=True)
        with RunningProxy(server.url, settings, cache_dir=tmp_path / "cache").running() as proxy:
            ask(proxy, FIRST)
            ask(proxy, FIRST, SECOND, THIRD, stop_token_ids=[9])
        first, second = counts(server, 0), counts(server, 1)
        assert len(second) == 3
        assert same(first, second[-1:]) == [True]  # the first message stands last
        assert [server.decode(frame).sampling.stop_token_ids for frame in server.frames] == [(7, 9), (9, 7)]
