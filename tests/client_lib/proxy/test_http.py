"""The HTTP side: who may ask, how much, what is logged, and what happens when somebody leaves."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import threading

import httpx
import pytest

from client_lib import Timeout, errors
from client_lib.proxy import ProxySettings
from client_lib.proxy.errors import api_error
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import Received, ScriptedServer, after_comments, error, hang, reset

CHAT = {"model": "open", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
# A wish that the client does not wait for, so that the failure is told.
LATER = {"retry-after": "61"}


def test_health_and_unknown_routes(proxy: RunningProxy) -> None:
    assert proxy.get("/healthz").json() == {"status": "ok"}
    missing = proxy.post("/v1/embeddings", {})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = proxy.get("/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_a_whole_answer_may_take_longer_than_a_silence(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    """The server's comments show that it works; without any, the proxy gives up."""
    proxy = make_proxy(client={"timeout": Timeout(read=1.0), "max_retries": 0})
    server.script.append(after_comments(8, 0.25))
    assert proxy.post("/v1/completions", {"model": "open", "prompt": "the sea"}).status_code == 200


def test_every_answer_has_a_request_id_of_its_own(proxy: RunningProxy, server: ScriptedServer) -> None:
    server.script.append(error(500, "internal_error", LATER))
    answers = [
        proxy.get("/healthz"),
        proxy.get("/nowhere"),
        proxy.post("/v1/chat/completions", {}),
        proxy.post("/v1/chat/completions", CHAT),
        proxy.post("/v1/chat/completions", CHAT),
        proxy.post("/v1/chat/completions", {**CHAT, "stream": True}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 400, 502, 200, 200]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    # Under what name the server's log has it.
    assert [answer.headers.get("x-del-server-request-id") for answer in answers[3:5]] == ["req-9", "req-1"]


def test_a_large_body_is_refused(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(max_body_bytes=1000)
    whole = {"content-type": "application/json"}
    answer = proxy.post("/v1/completions", None, content=b" " * 1001, headers=whole)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    pieces = (b" " * 100 for _ in range(11))  # chunked: no length is announced
    assert proxy.post("/v1/completions", None, content=pieces, headers=whole).status_code == 413
    assert server.frames == []


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_web_page_cannot_send_without_being_asked(proxy: RunningProxy, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = httpx.post(f"{proxy.url}/v1/completions", content=json.dumps(CHAT), headers=headers, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_name_that_leads_here_is_not_enough(make_proxy: MakeProxy) -> None:
    proxy = make_proxy(loopback_hosts=True)
    for host in ("localhost:8081", "127.0.0.1", "[::1]:8081", "[::1]"):
        assert proxy.post("/v1/chat/completions", CHAT, headers={"host": host}).status_code == 200
    for host in ("evil.example:8081", "127.0.0.1.evil.example", "127.example.org:8081", ""):
        refused = proxy.post("/v1/chat/completions", CHAT, headers={"host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_refused")


def test_a_key(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(client_key="sesame")
    for headers in (
        {},
        {"authorization": "Bearer open"},
        {"authorization": "Basic sesame"},
        {"authorization": "Bearer"},
    ):
        refused = proxy.post("/v1/chat/completions", CHAT, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert proxy.get("/v1/models", headers=headers).status_code == 401
    assert proxy.post("/v1/chat/completions", CHAT, headers={"authorization": "Bearer sesame"}).status_code == 200
    assert proxy.get("/healthz").status_code == 200
    # The callers' key is not the server's.
    assert all("authorization" not in received.headers for received in server.received)


def test_the_servers_key_stays_with_the_proxy(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(client={"api_key": "upstream"})
    proxy.post("/v1/chat/completions", CHAT, headers={"authorization": "Bearer theirs"})
    assert server.requests_to("/v1/private/completions")[0].headers["authorization"] == "Bearer upstream"


class _Dripping:
    """Begins a stream and keeps its connection busy until the other side closes it."""

    def __init__(self, event: bytes) -> None:
        self._event = event
        self.began = threading.Event()
        self.gone = threading.Event()

    async def __call__(self, _: ScriptedServer, __: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + self._event)
        self.began.set()
        try:
            while True:
                writer.write(b": still here\n\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            self.gone.set()
            raise


EVENT = b'data: {"id":"c","choices":[{"index":0,"text":"abc","token_ids":[1],"finish_reason":null}]}\n\n'


@pytest.mark.parametrize("event", [EVENT, b""], ids=["in the middle", "before the first piece"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_server_is_left_when_the_caller_leaves(
    proxy: RunningProxy, server: ScriptedServer, stream: bool, event: bytes
) -> None:
    dripping = _Dripping(event)
    server.script.append(dripping)
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**CHAT, "stream": stream}), headers)
    if stream and event:
        assert connection.getresponse().read(1)
    assert dripping.began.wait(30), "the server was not reached"
    connection.close()
    assert dripping.gone.wait(10), "the connection to the server is still open"
    assert proxy.post("/v1/chat/completions", CHAT).status_code == 200


CANARIES = ("heliotrope", "zanzibar", "quixotic", "mulberry", "tamarisk")


def test_nothing_of_a_request_is_logged(
    proxy: RunningProxy, server: ScriptedServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {**CHAT, "messages": [{"role": "user", "content": CANARIES[0]}], "user": CANARIES[1], "stop": CANARIES[2]}
    path = f"/v1/chat/completions?q={CANARIES[3]}"
    headers = {"x-del-subject": CANARIES[4]}
    server.script.extend([error(500, "internal_error", LATER), error(400, "invalid_value")])
    sent = [(path, secret)] * 3
    sent += [(path, {**secret, "stream": True}), (path, {**secret, CANARIES[0]: CANARIES[1]})]
    sent += [(f"/{CANARIES[0]}", secret), (path, CANARIES[0])]
    statuses = [_post_quietly(proxy, path, body, headers) for path, body in sent]
    assert statuses == [502, 400, 200, 200, 200, 404, 400]
    said = caplog.text + "".join(capfd.readouterr())
    assert not [canary for canary in CANARIES if canary in said]
    assert "POST /v1/chat/completions 502 upstream_error" in said
    assert "POST /v1/chat/completions 200" in said


def _post_quietly(proxy: RunningProxy, path: str, body: object, headers: dict[str, str]) -> int:
    """The status of an answer, read to its end by a client that logs nothing itself."""
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status


def test_a_defect_is_logged_without_its_words(
    proxy: RunningProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client_lib.proxy import app

    def fail(_: object, **__: object) -> None:
        raise RuntimeError("heliotrope")

    monkeypatch.setattr(app, "parse_chat", fail)
    answer = proxy.post("/v1/chat/completions", CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "heliotrope" not in caplog.text + answer.text
    assert "defect: RuntimeError at " in caplog.text


def test_every_error_of_the_client_has_an_answer() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not isinstance(kind, type) or kind is errors.DELClientError:
            continue
        answer = api_error(kind("words"))
        assert answer.code not in (None, "internal_error"), name
        assert answer.status >= 400
        if answer.status >= 500:
            assert answer.body["error"]["type"] == "server_error"


@pytest.mark.parametrize(
    ("behaviours", "client", "status", "code", "retry"),
    [
        ([error(503, "overloaded", {"retry-after": "1.5"})], {"max_retries": 0}, 503, "overloaded", "2"),
        ([error(503, "overloaded")], {"max_retries": 0}, 503, "overloaded", "1"),
        ([error(429, "rate_limited", {"retry-after": "7"})], {"max_retries": 0}, 429, "rate_limited", "7"),
        ([reset], {"max_retries": 0}, 502, "upstream_unreachable", None),
        ([error(302, "x")], {}, 502, "upstream_redirect", None),
        ([hang()], {"timeout": 0.2}, 504, "upstream_timeout", None),
        ([error(404, "unknown_variant")], {}, 404, "model_not_found", None),
    ],
)
def test_failures_of_the_server(
    make_proxy: MakeProxy,
    server: ScriptedServer,
    behaviours: list,
    client: dict,
    status: int,
    code: str,
    retry: str | None,
) -> None:
    proxy = make_proxy(client=client)
    while proxy.get("/v1/models").status_code != 200:
        pass  # the bundle has to be there first, which may take longer than the shortest of the limits
    server.script.extend(behaviours)
    answer = proxy.post("/v1/chat/completions", CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers.get("retry-after") == retry
    # OpenAI's clients go by this header before they go by the status.
    assert answer.headers["x-should-retry"] == ("true" if code in ("overloaded", "rate_limited") else "false")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"client_key": ""}, "client_key"),
        ({"client_key": "ä"}, "client_key"),
        ({"subject": ""}, "subject"),
        ({"variants": ()}, "variants"),
        ({"chat_max_tokens": 0}, "chat_max_tokens"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
    ],
)
def test_settings_are_checked(changes: dict, name: str) -> None:
    with pytest.raises(errors.InvalidRequestError, match=f"^{name} must be "):
        ProxySettings(**changes)
