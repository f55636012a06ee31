"""No text of prompts or answers in messages, representations, logs or requests."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import client_lib
from client_lib import DELClientError, private, public
from del_core.wire import PrivateSegment
from tests.client_lib.conftest import Calls
from tests.support.scripted_server import (
    Behaviour,
    ScriptedServer,
    cut,
    error,
    expected_text,
    expected_tokens,
    raw,
    reset,
    status,
)

Connect = Callable[..., Calls]
# Words that no port, address or hexadecimal id can contain by chance.
SECRET = "Zebra was positive"
INSTRUCTION = "Quokka please"
ANSWER = expected_text(expected_tokens(16))

FAULTS: list[Behaviour] = [
    reset,
    cut(400),
    status(302, {"location": "http://192.0.2.1/"}),
    error(400, "invalid_value"),
    error(500, "internal_error"),
    error(503, "overloaded"),
    error(409, "bundle_outdated"),
    raw(b"data: " + ANSWER.encode() + b"\n\n"),
    raw(b"data: \xff" + ANSWER.encode() + b"\n\n"),
    raw(b'data: {"choices": "' + ANSWER.encode() + b'"}\n\n'),
    raw(ANSWER.encode(), "application/json"),
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", ["complete", "stream"])
def test_failures_and_logs_hold_no_text(
    connect: Connect, server: ScriptedServer, caplog: pytest.LogCaptureFixture, fault: Behaviour, method: str
) -> None:
    """All log records of all libraries, and the whole chain of exceptions with arguments."""
    server.script.append(fault)
    seen = []
    with caplog.at_level(logging.DEBUG):
        try:
            calls = connect(max_retries=0, max_resumes=0)
            seen.append(repr(getattr(calls, method)([public(INSTRUCTION), private(SECRET)], variant="open")))
        except DELClientError as failure:
            seen.append("".join(traceback.format_exception(failure)))
            link: BaseException | None = failure
            while link is not None:
                seen.append(repr((link, link.args, vars(link))))
                link = link.__cause__ or link.__context__
    text = "\n".join([*seen, *(record.getMessage() + str(record.args) for record in caplog.records)])
    # A failing line of source is part of a traceback, and it may name a variable; it never holds a
    # value.
    for word in ("Zebra", "Quokka", "positive", "please", " w3", "日"):
        assert word not in text
    assert len(seen) > 0


@pytest.mark.parametrize("credential", ["key", "pass"])
def test_no_local_variable_of_a_failure_shows_a_credential(
    connect: Connect, server: ScriptedServer, credential: str
) -> None:
    """Services that collect errors, and test runners, print the variables of every frame."""
    secret = b"credential" + bytes(6)
    server.script.append(error(400, "invalid_value"))
    paying = {"api_key": secret[:10].decode()} if credential == "key" else {"passes": _OnePass(secret)}
    with pytest.raises(DELClientError) as failure:
        connect(max_retries=0, **paying).complete([private(SECRET)], variant="open")
    frames = traceback.TracebackException.from_exception(failure.value, capture_locals=True).stack
    library = Path(client_lib.__file__).parent
    shown = [str(frame.locals) for frame in frames if Path(frame.filename).is_relative_to(library)]
    assert len(shown) > 3
    sent = server.requests_to("/v1/private/completions")[-1].headers["authorization"]
    for form in (secret[:10].decode(), sent.split()[-1].strip('"').removeprefix('token="')):
        assert not [text for text in shown if form in text]


class _OnePass:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self) -> bytes:
        return self._data


def test_no_two_frames_of_one_call_differ_in_their_noise(connect: Connect, server: ScriptedServer) -> None:
    """Whatever goes wrong, a call reveals one draw of the noise."""
    server.script.extend([reset, cut(300), error(503, "overloaded", {"retry-after": "0"}), cut(450), reset])
    connect().stream(SECRET * 5, variant="open", max_tokens=12)
    assert len(server.frames) == 6
    draws = {
        tuple(segment for segment in server.decode(frame).segments if isinstance(segment, PrivateSegment))
        for frame in server.frames
    }
    assert len(draws) == 1


def test_requests_carry_nothing_but_the_frame(connect: Connect, server: ScriptedServer) -> None:
    connect(api_key="key-1").complete([public(INSTRUCTION), private(SECRET)], variant="open")
    received = server.requests_to("/v1/private/completions")[0]
    assert set(received.headers) == {
        "host",
        "accept",
        "idempotency-key",
        "accept-encoding",
        "authorization",
        "content-length",
        "content-type",
        "user-agent",
        "x-request-deadline-ms",
    }
    # What is left of the total time limit.
    assert 0 < int(received.headers["x-request-deadline-ms"]) <= 600_000
    assert received.headers["user-agent"] == "del-serve-client"
    assert b"Zebra" not in received.body


def test_representations(connect: Connect, server: ScriptedServer) -> None:
    calls = connect(api_key="key-1")
    completion = calls.complete(SECRET, variant="open")
    chunks, _ = calls.stream(SECRET, variant="open")
    for value in (completion, *chunks, calls.client, calls.call("bundle")):  # type: ignore[attr-defined]
        assert not any(word in repr(value) for word in (" w3", "日", "Zebra", "key-1"))
    assert repr(expected_tokens(16)[:3])[1:-1] not in repr(completion)
