"""Failures of servers and connections: retries, resumption, timeouts, typed errors."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_lib import (
    AuthenticationError,
    Client,
    ConnectionFailedError,
    DELClientError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    ProtocolError,
    RedirectRefusedError,
    ServerError,
    StreamBrokenError,
    Timeout,
    TimeoutExceededError,
    Usage,
)
from client_lib import errors as family
from del_core.bundle import ClientBundle
from del_core.errors import ERROR_STATUS, DelError
from del_core.wire import PrivateSegment
from tests.client_lib.conftest import SHORT_PAUSES, Calls
from tests.support.scripted_server import (
    Behaviour,
    ScriptedServer,
    answer,
    chatter,
    cut,
    error,
    expected_text,
    expected_tokens,
    hang,
    late,
    raw,
    reset,
    status,
)

Connect = Callable[..., Calls]
SECRET = "my test was positive"
NOW = {"retry-after": "0"}
BROKEN = b'data: {"error": {"message": "no", "code": "internal_error"}}\n\n'


# --- retries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        status(408, NOW),
        error(409, "busy", NOW),
        error(429, "rate_limited", NOW),
        status(502, {}, b'{"error": 3}'),
        status(502, {}, b"[" * 60_000),
        status(502, {}, b"x" * 200_000),
        status(502, {}, b"<html>bad gateway</html>"),
        error(503, "overloaded", NOW),
        error(503, "engine_unavailable"),
        status(504),
        status(529),
        reset,
    ],
)
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_temporary_failures_are_retried_with_identical_bytes(
    connect: Connect, server: ScriptedServer, failure: Behaviour, method: str
) -> None:
    server.script.extend([failure, failure])
    result = getattr(connect(), method)(SECRET, variant="open", max_tokens=4)
    completion = result[1] if method == "stream" else result
    assert completion.token_ids == expected_tokens(4)
    first, second, third = server.frames
    assert first == second == third


@pytest.mark.parametrize(
    "failure",
    [
        error(500, "internal_error"),
        error(500, "internal_error", NOW),
        status(500, {}, b'{"error": 3}'),
        status(500, {}, b"[" * 60_000),
        status(500, {}, b"x" * 200_000),
    ],
)
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_an_internal_error_is_tried_again_once(
    connect: Connect, server: ScriptedServer, failure: Behaviour, method: str
) -> None:
    server.script.extend([failure, error(503, "overloaded", NOW)])
    getattr(connect(), method)(SECRET, variant="open", max_tokens=4)
    assert len(server.frames) == 3
    server.script.extend([failure, reset, failure, failure])
    with pytest.raises(ServerError) as caught:
        getattr(connect(), method)(SECRET, variant="open", max_tokens=4)
    assert caught.value.status == 500
    assert len(server.frames) == 6
    assert len(set(server.frames[3:])) == 1


def test_a_server_that_is_away_for_many_tries_is_waited_for(connect: Connect, server: ScriptedServer) -> None:
    away = [reset, status(502), error(503, "engine_unavailable", NOW), status(504), error(429, "rate_limited", NOW)]
    server.script.extend([*away, *away, reset, reset])
    assert connect().complete(SECRET, variant="open", max_tokens=4).token_ids == expected_tokens(4)
    assert len(server.frames) == 13


@pytest.mark.parametrize(
    ("failure", "kind", "code"),
    [
        (error(400, "invalid_value"), InvalidRequestError, "invalid_value"),
        (error(404, "unknown_variant"), InvalidRequestError, "unknown_variant"),
        (error(404, "not_found"), ProtocolError, "not_found"),
        (error(413, "frame_too_large"), InvalidRequestError, "frame_too_large"),
        (error(415, "unsupported_media_type"), ProtocolError, "unsupported_media_type"),
        (error(401, "invalid_api_key"), AuthenticationError, "invalid_api_key"),
        (error(403, "forbidden"), PermissionDeniedError, "forbidden"),
        (status(418), ServerError, None),
        (status(418, {}, b'{"error": 3}'), ServerError, None),
        (status(418, {}, b"[" * 60_000), ServerError, None),
        (status(418, {}, b"x" * 200_000), ServerError, None),
    ],
)
def test_lasting_failures_are_typed_and_not_retried(
    connect: Connect, server: ScriptedServer, failure: Behaviour, kind: type[DELClientError], code: str | None
) -> None:
    server.script.append(failure)
    with pytest.raises(DELClientError) as caught:
        connect().complete(SECRET, variant="open")
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert caught.value.request_id == ("req-9" if code else None)
    assert len(server.frames) == 1


def test_retries_are_bounded_and_the_last_failure_is_told(connect: Connect, server: ScriptedServer) -> None:
    server.script.extend([error(503, "overloaded", NOW, "16 of 16 places taken")] * 9)
    with pytest.raises(OverloadedError, match="16 of 16 places taken") as caught:
        connect(max_retries=3).complete(SECRET, variant="open")
    assert caught.value.retry_after == 0.0
    assert caught.value.status == 503
    assert len(server.frames) == 4


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503])
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_retry_after_is_waited_for(connect: Connect, server: ScriptedServer, code: int, method: str) -> None:
    calls = connect()
    calls.call("bundle")
    server.script.append(error(code, "busy", {"retry-after": "0.3"}))
    started = time.monotonic()
    getattr(calls, method)(SECRET, variant="open", max_tokens=4)
    assert time.monotonic() - started >= 0.3  # the client's own pause would be a millisecond
    assert len(server.frames) == 2


def test_a_long_retry_after_is_left_to_the_caller(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(error(429, "rate_limited", {"retry-after": "3600"}))
    with pytest.raises(OverloadedError) as caught:
        connect().complete(SECRET, variant="open")
    assert caught.value.retry_after == 3600
    assert len(server.frames) == 1


def test_a_pause_beyond_the_total_limit_is_not_begun(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(timeout=Timeout(total=5))
    calls.call("bundle")
    server.script.append(error(503, "overloaded", {"retry-after": "20"}))
    started = time.monotonic()
    with pytest.raises(OverloadedError):
        calls.complete(SECRET, variant="open")
    assert time.monotonic() - started < 4


def test_no_server(connect: Connect, server: ScriptedServer, bundle: ClientBundle) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ConnectionFailedError, match=url):
            connect(base_url=url, bundle=bundle.path).complete(SECRET, variant="open")


def test_the_bundle_download_is_retried(connect: Connect, server: ScriptedServer) -> None:
    server.bundle_script.extend([error(503, "engine_unavailable", NOW), reset])
    assert connect().complete(SECRET, variant="open").token_ids


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_refused(connect: Connect, server: ScriptedServer, tmp_path: Path, code: int) -> None:
    """Also to the same host: a prompt goes where the caller said."""
    server.script.append(status(code, {"location": f"{server.url}/elsewhere"}))
    calls = connect()
    with pytest.raises(RedirectRefusedError):
        calls.complete(SECRET, variant="open")
    server.bundle_script.append(status(code, {"location": "http://192.0.2.1/v1/bundle"}))
    with pytest.raises(RedirectRefusedError):
        connect(cache_dir=tmp_path / "other").call("bundle")
    assert server.requests_to("/elsewhere") == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"text": 1, "token_ids": [], "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "private answer", "token_ids": ["x"], "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "private answer", "token_ids": [true], "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "private answer", "token_ids": [-1], "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "private answer", "token_ids": [1], "finish_reason": null}]}',
        b'{"choices": [{"text": "private answer", "token_ids": [1], "finish_reason": 2}]}',
        b'{"choices": [{"text": "private answer", "token_ids": [1, 2, 3, 4, 5], "finish_reason": "stop"}]}',
        b'{"choices": [{"text": "private answer", "token_ids": [1], "finish_reason": "stop"}], "usage": {}}',
        b'{"choices": [{"text": "private answer", "token_ids": [1], "finish_reason": "stop"}], "usage": NaN}',
        b"[" * 100_000,
    ],
)
def test_answers_that_are_none(connect: Connect, server: ScriptedServer, body: bytes) -> None:
    server.script.append(raw(body, "application/json"))
    with pytest.raises(ProtocolError) as caught:
        connect().complete(SECRET, variant="open", max_tokens=4)
    assert "private answer" not in str(caught.value)
    assert caught.value.__context__ is None
    assert len(server.frames) == 1


# --- streams --------------------------------------------------------------------------------------


def test_stream(connect: Connect, server: ScriptedServer) -> None:
    chunks, completion = connect().stream(SECRET, variant="open", max_tokens=9)
    assert "".join(chunk.text for chunk in chunks) == expected_text(expected_tokens(9))
    assert [chunk.finish_reason for chunk in chunks] == [None, None, None, None, "length"]
    assert completion is not None
    assert completion.text == expected_text(expected_tokens(9))
    assert completion.token_ids == tuple(token for chunk in chunks for token in chunk.token_ids) == expected_tokens(9)
    prompt = server.decode(server.frames[0]).prompt_tokens
    assert completion.usage == Usage(prompt, 9, prompt + 9)
    assert completion.bytes_sent == len(server.frames[0])


def test_a_stream_that_is_left_early_frees_its_connection(connect: Connect, server: ScriptedServer) -> None:
    calls = connect()
    chunks, completion = calls.stream(SECRET, variant="open", max_tokens=50, take=2)
    assert len(chunks) == 2
    assert completion is None
    assert calls.complete(SECRET, variant="open").token_ids


def test_nothing_is_sent_before_the_first_chunk_is_asked_for(server: ScriptedServer, tmp_path: Path) -> None:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path) as client:
        stream = client.stream(SECRET, variant="open")
        assert server.received == []
        assert stream.completion is None
        stream.close()
        assert list(stream) == []


@pytest.mark.parametrize("chunked", [True, False])
def test_a_cut_stream_is_resumed_unnoticed(connect: Connect, server: ScriptedServer, chunked: bool) -> None:
    server.script.extend([cut(300, chunked=chunked), cut(200, chunked=chunked), cut(500, chunked=chunked)])
    chunks, completion = connect().stream(SECRET, variant="open", max_tokens=12)
    assert "".join(chunk.text for chunk in chunks) == expected_text(expected_tokens(12))
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == expected_tokens(12)
    assert completion is not None
    assert (completion.finish_reason, completion.text) == ("length", expected_text(expected_tokens(12)))
    requests = [server.decode(frame) for frame in server.frames]
    assert len(requests) == 4
    assert [request.resume for request in requests[:1]] == [()]
    assert all(request.resume == expected_tokens(len(request.resume)) for request in requests)
    assert completion.usage == Usage(requests[0].prompt_tokens, 12, requests[0].prompt_tokens + 12)
    # The very same noise each time, down to the bytes.
    size = sum(s.codes.size * 4 // 8 for s in requests[0].segments if isinstance(s, PrivateSegment))
    assert len({frame[-size:] for frame in server.frames}) == 1
    assert len({request.sampling for request in requests}) == 1


@pytest.fixture
def streaming_client(server: ScriptedServer, tmp_path: Path) -> Iterator[Client]:
    with Client(server.url, retry=SHORT_PAUSES, cache_dir=tmp_path / "cache") as client:
        yield client


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2000), chunked=st.booleans(), max_tokens=st.integers(1, 9))
def test_cut_anywhere(
    server: ScriptedServer, streaming_client: Client, position: int, chunked: bool, max_tokens: int
) -> None:
    """Wherever the connection breaks, the caller sees each token once and the whole text."""
    server.script.append(cut(position, chunked=chunked))
    try:
        chunks = list(streaming_client.stream(SECRET, variant="open", max_tokens=max_tokens))
    finally:
        server.script.clear()
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == expected_tokens(max_tokens)
    assert "".join(chunk.text for chunk in chunks) == expected_text(expected_tokens(max_tokens))
    assert [chunk.finish_reason for chunk in chunks].count("length") == 1
    assert chunks[-1].finish_reason == "length"


def test_resumptions_are_bounded(connect: Connect, server: ScriptedServer) -> None:
    server.script.extend([cut(300)] * 9)
    with pytest.raises(StreamBrokenError):
        connect(max_resumes=2).stream(SECRET, variant="open", max_tokens=50)
    assert len(server.frames) == 3


def test_resumption_can_be_declined(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(cut(300))
    with pytest.raises(StreamBrokenError):
        connect(max_resumes=0).stream(SECRET, variant="open", max_tokens=50)
    assert len(server.frames) == 1


def test_resuming_waits_for_a_server_that_is_being_replaced(connect: Connect, server: ScriptedServer) -> None:
    server.script.extend([cut(300), error(503, "engine_unavailable", NOW), reset])
    _, completion = connect().stream(SECRET, variant="open", max_tokens=12)
    assert completion is not None
    assert completion.token_ids == expected_tokens(12)


def test_a_server_that_stays_away_breaks_the_stream(connect: Connect, server: ScriptedServer) -> None:
    server.script.extend([cut(300), *[error(503, "overloaded", NOW)] * 9])
    with pytest.raises(StreamBrokenError) as caught:
        connect(max_retries=1).stream(SECRET, variant="open", max_tokens=12)
    assert isinstance(caught.value.__cause__, OverloadedError)


@pytest.mark.parametrize("code", ["engine_unavailable", "internal_error", "something_new", None, 3])
def test_an_error_event_of_a_failing_server_is_recovered_from(
    connect: Connect, server: ScriptedServer, code: Any
) -> None:
    server.script.append(raw(b"data: " + json.dumps({"error": {"message": "no", "code": code}}).encode() + b"\n\n"))
    _, completion = connect().stream(SECRET, variant="open", max_tokens=5)
    assert completion is not None
    assert completion.token_ids == expected_tokens(5)


@pytest.mark.parametrize("second", [raw(BROKEN), error(500, "internal_error")])
def test_a_second_internal_error_ends_the_stream(connect: Connect, server: ScriptedServer, second: Behaviour) -> None:
    """Whether it is told in the stream or instead of one."""
    server.script.extend([raw(BROKEN), second, answer])
    with pytest.raises(ServerError) as caught:
        connect().stream(SECRET, variant="open", max_tokens=5)
    assert caught.value.code == "internal_error"
    assert len(server.frames) == 2


def test_other_error_events_end_the_stream(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(raw(b'data: {"error": {"message": "no", "code": "invalid_value"}}\n\n'))
    with pytest.raises(InvalidRequestError, match="no"):
        connect().stream(SECRET, variant="open")
    assert len(server.frames) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"data: private answer\n\n",
        b"data: \xff\n\n",
        b"data: []\n\n",
        b"data: {}\n\n",
        b'data: {"choices": [{"text": "private answer", "token_ids": "x"}]}\n\n',
        b'data: {"choices": [{"text": "private answer", "token_ids": [1, 2, 3, 4, 5]}]}\n\n',
        b'data: {"choices": [{"text": "a", "token_ids": [1], "finish_reason": "stop"}]}\n\n' * 2,
        b"data: " + b"x" * (2 << 20) + b"\n\n",
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_garbage_in_a_stream(connect: Connect, server: ScriptedServer, body: bytes) -> None:
    server.script.append(raw(body))
    with pytest.raises(ProtocolError) as caught:
        connect().stream(SECRET, variant="open", max_tokens=4)
    assert "private answer" not in str(caught.value)
    assert len(server.frames) == 1


def test_an_answer_that_is_no_stream(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(raw(b"<html>", "text/html"))
    with pytest.raises(ProtocolError, match="text/event-stream"):
        connect().stream(SECRET, variant="open")


def test_extra_events_and_members_are_read_over(connect: Connect, server: ScriptedServer) -> None:
    body = (
        b": ping\r\n\r\n"
        b'data: {"choices": [], "usage": null, "new": 1}\r\n\r\n'
        b'data: {"choices": [{"text": "", "token_ids": [], "finish_reason": null}]}\r\n\r\n'
        b'data: {"choices": [{"text": "a", "token_ids": [5], "finish_reason": null, "new": {}}]}\r\n\r\n'
        b'event: x\r\nid: 3\r\ndata: {"choices": [{"text": "b", "token_ids": [], "finish_reason": "stop"}]}\r\n\r\n'
        b"data: [DONE]\r\n\r\n"
        b"data: after the end\r\n\r\n"
    )
    server.script.append(raw(body, "text/event-stream; charset=utf-8"))
    chunks, completion = connect().stream(SECRET, variant="open")
    assert [(chunk.text, chunk.token_ids) for chunk in chunks] == [("a", (5,)), ("b", ())]
    assert completion is not None
    assert (completion.text, completion.finish_reason) == ("ab", "stop")
    assert completion.usage.completion_tokens == 1


# --- time limits ----------------------------------------------------------------------------------


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
ONE_TOKEN = b'data: {"choices": [{"text": "a", "token_ids": [3], "finish_reason": null}]}\n\n'


@pytest.mark.parametrize(
    ("method", "head", "phase"),
    [
        ("complete", b"", "read"),
        ("complete", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", "read"),
        ("stream", b"", "read"),
        ("stream", STREAM_HEAD, "read"),
        ("complete", b"", "total"),
        ("stream", STREAM_HEAD, "total"),
    ],
)
def test_silence(connect: Connect, server: ScriptedServer, method: str, head: bytes, phase: str) -> None:
    server.script.append(hang(head))
    calls = connect(timeout=Timeout(read=0.3) if phase == "read" else Timeout(read=30, total=0.6))
    calls.call("bundle")
    with pytest.raises(TimeoutExceededError) as caught:
        getattr(calls, method)(SECRET, variant="open")
    assert caught.value.phase == phase
    assert len(server.frames) == 1  # it may be computing still


def test_silence_after_tokens_is_a_broken_stream(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(hang(STREAM_HEAD + ONE_TOKEN))
    _, completion = connect(timeout=Timeout(read=0.3)).stream(SECRET, variant="open", max_tokens=6)
    assert completion is not None
    assert completion.token_ids == expected_tokens(6)
    assert server.decode(server.frames[1]).resume == (3,)


@pytest.mark.parametrize("head", [b"", STREAM_HEAD, STREAM_HEAD + b": waiting\n\n"])
def test_the_first_token_has_to_come_in_time(connect: Connect, server: ScriptedServer, head: bytes) -> None:
    """Long before the limits of silence and of the whole call; nothing is asked again by itself."""
    server.script.append(hang(head))
    calls = connect(timeout=Timeout(read=30, first_token=0.4))
    calls.call("bundle")
    started = time.monotonic()
    with pytest.raises(TimeoutExceededError, match="first_token") as caught:
        calls.stream(SECRET, variant="open")
    assert caught.value.phase == "first_token"
    assert 0.4 <= time.monotonic() - started < 10
    assert len(server.frames) == 1
    assert calls.complete(SECRET, variant="open").token_ids


def test_a_server_that_only_says_that_it_is_there_is_left_too(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(chatter(b": still waiting\n\n"))
    with pytest.raises(TimeoutExceededError) as caught:
        connect(timeout=Timeout(read=30, first_token=0.4)).stream(SECRET, variant="open")
    assert caught.value.phase == "first_token"


def test_tries_and_pauses_count_until_the_first_token(connect: Connect, server: ScriptedServer) -> None:
    server.script.extend([error(503, "overloaded", {"retry-after": "30"})] * 9)
    calls = connect(timeout=Timeout(first_token=5))
    calls.call("bundle")
    with pytest.raises(OverloadedError):  # the pause would pass the limit, so it is not begun
        calls.stream(SECRET, variant="open")
    assert len(server.frames) == 1


def test_after_the_first_token_its_limit_has_no_part(connect: Connect, server: ScriptedServer) -> None:
    """The rest of the stream comes after the limit, in one answer and in a resumed one."""
    calls = connect(timeout=Timeout(first_token=0.5))
    calls.call("bundle")
    server.script.append(late(STREAM_HEAD + ONE_TOKEN, 0.8))
    _, completion = calls.stream(SECRET, variant="open", max_tokens=6)
    assert completion is not None
    assert completion.token_ids == (3, *expected_tokens(6)[1:])


def test_an_answer_in_one_piece_has_no_first_token(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(timeout=Timeout(first_token=0.001))
    assert calls.complete(SECRET, variant="open").token_ids


def test_no_connection_in_time(connect: Connect, bundle: ClientBundle) -> None:
    """A listener whose queue is full answers no further connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listener.getsockname())
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        calls = connect(base_url=url, bundle=bundle.path, timeout=Timeout(connect=0.2), max_retries=1)
        with pytest.raises(TimeoutExceededError) as caught:
            calls.complete(SECRET, variant="open")
        assert caught.value.phase == "connect"
        for connection in waiting:
            connection.close()


# --- the family -----------------------------------------------------------------------------------


def test_the_family_is_flat() -> None:
    kinds = [getattr(family, name) for name in family.__all__ if isinstance(getattr(family, name), type)]
    assert DELClientError.__base__ is DelError
    bases = {kind: kind.__base__ for kind in kinds if kind is not DELClientError}
    deeper = {kind.__name__: base.__name__ for kind, base in bases.items() if base and base is not DELClientError}
    assert deeper == {
        "AuthenticationError": "AccessDeniedError",
        "PassSpentError": "AuthenticationError",
        "ContextFullError": "InvalidRequestError",
        "PermissionDeniedError": "AccessDeniedError",
        "RateLimitError": "OverloadedError",
        "ServiceUnavailableError": "OverloadedError",
    }
    assert all(kind.__doc__ for kind in kinds)
    assert set(family.CODE_FAILURES) <= {*ERROR_STATUS}


def test_every_failure_of_the_transport_is_typed() -> None:
    import httpcore
    import httpx

    def subclasses(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))

    bases: tuple[type[Exception], ...] = (
        httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, httpcore.TimeoutException, httpcore.NetworkError,
        httpcore.ProtocolError, httpcore.ProxyError, httpcore.ConnectionNotAvailable,
    )  # fmt: skip
    kinds = set().union(*(subclasses(base) for base in bases))
    for failure in (*(kind.__new__(kind) for kind in kinds), OSError(), KeyError("a defect of a transport")):
        typed = family.error_from_transport(failure, url="http://host")
        is_timeout = isinstance(failure, httpx.TimeoutException | httpcore.TimeoutException)
        assert isinstance(typed, TimeoutExceededError) == is_timeout, failure
        assert "http://host" in str(typed)


def test_server_messages_are_bounded_and_printable(connect: Connect, server: ScriptedServer) -> None:
    server.script.append(error(400, "invalid_value", message="\x1b[31m" + "x" * 10_000 + "\n"))
    with pytest.raises(InvalidRequestError) as caught:
        connect().complete(SECRET, variant="open")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


def test_answer_is_still_right_after_every_fault(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(max_retries=0)
    for fault in (reset, error(500, "internal_error"), raw(b"x", "application/json")):
        server.script.extend([fault, answer])
        with pytest.raises(DELClientError):
            calls.complete(SECRET, variant="open")
        assert calls.complete(SECRET, variant="open", max_tokens=3).token_ids == expected_tokens(3)
