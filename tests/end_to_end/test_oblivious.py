"""Client, relay, gateway and replica: what each of them sees, and that everything works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from client_lib import AsyncClient, Client, DELClientError, InvalidRequestError, RetryPolicy, Timeout, private, public
from client_lib.policy import PrivacyPolicy
from client_lib.relay import Relay, RelaySettings, gateway_url
from del_core.ohttp import (
    CHUNKED_REQUEST,
    KEYS,
    REQUEST,
    RESPONSE,
    WELL_KNOWN,
    BinaryRequest,
    ClientRequest,
    GatewayKey,
    KeyConfig,
    ResponseDecoder,
    decode_request,
    encode_request,
)
from deployments.api import gateway
from deployments.api.context import APIOptions
from deployments.api.routes import create_app
from deployments.auth.keys import Keys, hash_key
from deployments.sections import APIKey, StreamingSettings
from tests.support.running_app import running
from tests.support.scripted_engine import ScriptedEngine

API_KEY = "del-" + "k" * 40
SECRET = "the brown fox"
NODE_PROJECT = Path(__file__).parent / "node"
KEY = GatewayKey.generate()
# The server's name in the requests: the client never connects to it.
SERVER = "https://del.example"


class Recorder:
    """ASGI middleware that keeps what arrives: heads, bodies and peers of outer requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.scopes.append(scope)
        number = len(self.bodies)
        self.bodies.append(b"")

        async def received() -> Any:
            message = await receive()
            self.bodies[number] += message.get("body", b"")
            return message

        await self.app(scope, received, send)


class Answers:
    """ASGI middleware that keeps the bodies of answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.sent = bytearray()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Any) -> None:
            self.sent += message.get("body", b"")
            await send(message)

        await self.app(scope, receive, sent)


@dataclass
class Stack:
    """A running relay and gateway."""

    relay_url: str
    gateway_url: str
    relay: Recorder
    gateway: Recorder
    engine: ScriptedEngine
    closing: list[Relay] = field(default_factory=list)


@pytest.fixture
def stack(make_service: Callable[..., Any]) -> Iterator[Stack]:
    engine = ScriptedEngine()
    keys = Keys({"ann": APIKey(hashes=(hash_key(API_KEY),))})
    options = APIOptions(keys=keys, gateway_key=KEY, streaming=StreamingSettings(max_tokens=1))
    gate = Recorder(create_app(make_service(engine), options))
    with contextlib.ExitStack() as opened:
        port = opened.enter_context(running(gate))
        url = f"http://127.0.0.1:{port}"
        relaying = Relay(gateway_url(url), RelaySettings(max_requests=4))
        relay = Recorder(relaying.app)
        relay_port = opened.enter_context(running(relay))
        yield Stack(f"http://127.0.0.1:{relay_port}", url, relay, gate, engine)


def options(stack: Stack, path: Path, **others: Any) -> dict[str, Any]:
    return {
        "relay": stack.relay_url,
        "gateway_key": KEY.config.to_list(),
        "api_key": API_KEY,
        "cache_dir": path,
        "retry": RetryPolicy(max_retries=1, first_pause=0.001),
        "timeout": Timeout(total=60),
        "policy": PrivacyPolicy(max_epsilon_per_token=1000),  # the tiny bundle has little noise
        **others,
    }


def test_everything_goes_through_the_relay(stack: Stack, tmp_path: Path) -> None:
    with Client(SERVER, **options(stack, tmp_path)) as client:
        names = [model.id for model in client.models()]
        variant = next(name for name in names if name != "clear")
        whole = client.complete(SECRET, variant=variant, max_tokens=5)
        assert len(whole.token_ids) == 5
        assert whole.request_id
        with client.stream([private(SECRET)], variant=variant, max_tokens=6) as stream:
            chunks = list(stream)
        assert sum(len(chunk.token_ids) for chunk in chunks) == 6
    assert {scope["path"] for scope in stack.relay.scopes} == {"/"}
    assert {scope["path"] for scope in stack.gateway.scopes} == {WELL_KNOWN}
    assert len(stack.gateway.scopes) == len(stack.relay.scopes) == 4


def test_without_a_relay_nobody_in_between_reads_anything(stack: Stack, tmp_path: Path) -> None:
    """A TLS terminator in front of the gateway sees neither prompt, answer nor key."""
    answers = Answers(stack.gateway)
    with running(answers) as port:
        url = f"http://127.0.0.1:{port}"
        with Client(url, **options(stack, tmp_path, relay=None)) as client:
            whole = client.complete([public("one two")], variant="clear", max_tokens=3)
            with client.stream([public("one two")], variant="clear", max_tokens=3) as stream:
                chunks = list(stream)
    assert whole.text
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert {scope["path"] for scope in stack.gateway.scopes} == {WELL_KNOWN}
    seen = [*stack.gateway.bodies, bytes(answers.sent)]
    for secret in (b"DELF", API_KEY.encode(), b"/v1/", b"token_ids", whole.text.encode()):
        assert not any(secret in body for body in seen)
    headers = [value for scope in stack.gateway.scopes for _, value in scope["headers"]]
    assert not any(API_KEY.encode() in value for value in headers)
    assert not stack.relay.scopes


def test_a_server_without_a_gateway_gets_nothing_in_the_clear(stack: Stack, tmp_path: Path) -> None:
    """There is no fallback to requests that are not sealed."""

    async def without(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    plain = Recorder(without)
    with (
        running(plain) as port,
        Client(f"http://127.0.0.1:{port}", **options(stack, tmp_path, relay=None)) as client,
        pytest.raises(DELClientError, match="HTTP 404"),
    ):
        client.models()
    assert {scope["path"] for scope in plain.scopes} == {WELL_KNOWN}
    assert not any(API_KEY.encode() in body for body in plain.bodies)


@pytest.mark.parametrize("path", ["/healthz", "/llm/healthz"])
def test_a_gateway_below_a_prefix_takes_paths_with_and_without_it(stack: Stack, path: str) -> None:
    async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
        await stack.gateway({**scope, "root_path": "/llm"} if scope["type"] == "http" else scope, receive, send)

    client = ClientRequest(KEY.config)
    body = client.seal(encode_request(BinaryRequest("GET", "https", "x", path)))
    with running(mounted) as port:
        url = f"http://127.0.0.1:{port}/llm{WELL_KNOWN}"
        response = httpx.post(url, content=body, headers={"content-type": CHUNKED_REQUEST})
    decoder = ResponseDecoder()
    decoder.feed(client.response().feed(response.content, ended=True), ended=True)
    assert decoder.status == 200


def test_the_asynchronous_client(stack: Stack, tmp_path: Path) -> None:
    async def run() -> None:
        async with AsyncClient(SERVER, **options(stack, tmp_path)) as client:
            whole = await client.complete([public("one two")], variant="clear", max_tokens=4)
            async with client.stream([public("one two")], variant="clear", max_tokens=4) as stream:
                tokens = [token_id async for chunk in stream for token_id in chunk.token_ids]
            assert tuple(tokens) == whole.token_ids

    asyncio.run(run())


def test_neither_sees_both(stack: Stack, tmp_path: Path) -> None:
    """The relay gets no content, no key and no path; the gateway no header of the caller's."""
    with Client(SERVER, **options(stack, tmp_path)) as client:
        client.complete([public("one two")], variant="clear", max_tokens=2)
    frame = b"DELF"
    for scope, body in zip(stack.relay.scopes, stack.relay.bodies, strict=True):
        headers = dict(scope["headers"])
        assert set(headers) == {b"host", b"content-type", b"accept", b"content-length", b"incremental"}
        assert headers[b"content-type"] == CHUNKED_REQUEST.encode()
        assert not any(text in body for text in (frame, API_KEY.encode(), b"/v1/", b"del.example"))
    for scope in stack.gateway.scopes:
        headers = dict(scope["headers"])
        added = {b"host", b"content-type", b"accept", b"accept-encoding", b"content-length", b"incremental"}
        assert set(headers) <= {*added, b"x-request-id"}  # the server's own id
        assert headers[b"content-type"] == CHUNKED_REQUEST.encode()


def test_what_a_caller_adds_does_not_pass_the_relay(stack: Stack) -> None:
    """Neither headers of the request nor of the response, nor the query."""
    body = ClientRequest(KEY.config).seal(encode_request(BinaryRequest("GET", "https", "x", "/healthz")))
    identifying = {
        "cookie": "who=ann", "user-agent": "ann/1", "x-forwarded-for": "192.0.2.1", "authorization": "Bearer x",
        "x-request-id": "ann", "forwarded": "for=192.0.2.1", "traceparent": "00-1-2-3", "via": "ann",
    }  # fmt: skip
    response = httpx.post(
        f"{stack.relay_url}/?who=ann", content=body, headers={**identifying, "content-type": CHUNKED_REQUEST}
    )
    assert response.status_code == 200
    (scope,) = stack.gateway.scopes
    assert scope["query_string"] == b""
    assert not any(b"ann" in value or b"192.0.2.1" in value for _, value in scope["headers"])
    assert "x-request-id" not in response.headers
    assert "set-cookie" not in response.headers


def test_a_stream_that_the_client_leaves_ends_at_the_engine(stack: Stack, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def hold(number: int) -> None:
        if number >= 2:
            await gate.wait()

    stack.engine.before = hold
    with Client(SERVER, **options(stack, tmp_path)) as client:
        client.bundle()
        with client.stream([public("one two")], variant="clear", max_tokens=9) as stream:
            next(stream)

        async def until_closed() -> None:
            while not stack.engine.calls[-1].closed:
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(until_closed(), 20))


def test_keys_and_errors_are_those_of_the_server(stack: Stack, tmp_path: Path) -> None:
    with (
        Client(SERVER, **options(stack, tmp_path, api_key="del-wrong")) as client,
        pytest.raises(DELClientError, match="HTTP 401") as caught,
    ):
        client.models()
    assert type(caught.value).__name__ == "AuthenticationError"
    with Client(SERVER, **options(stack, tmp_path)) as client, pytest.raises(InvalidRequestError, match="variant"):
        client.complete(SECRET, variant="no-such-variant")


def test_another_gateway_key_is_refused(stack: Stack, tmp_path: Path) -> None:
    other = GatewayKey.generate().config.to_list()
    with (
        Client(SERVER, **options(stack, tmp_path, gateway_key=other.hex())) as client,
        pytest.raises(InvalidRequestError, match="HTTP 400"),
    ):
        client.models()


def test_the_gateway_serves_its_key_and_takes_requests_that_are_not_chunked(stack: Stack) -> None:
    """As RFC 9458 has them, from any client."""
    served = httpx.get(stack.gateway_url + WELL_KNOWN)
    assert served.headers["content-type"] == KEYS
    config = KeyConfig.parse(served.content)
    assert config == KEY.config
    client = ClientRequest(config, chunked=False)
    body = client.seal(encode_request(BinaryRequest("GET", "https", "x", "/healthz")))
    response = httpx.post(stack.gateway_url + WELL_KNOWN, content=body, headers={"content-type": REQUEST})
    assert response.headers["content-type"] == RESPONSE
    decoder = ResponseDecoder()
    assert json.loads(decoder.feed(client.response().feed(response.content, ended=True), ended=True)) == {
        "status": "ok"
    }
    assert decoder.status == 200
    refused = httpx.post(stack.gateway_url + WELL_KNOWN, content=b"x" * 100, headers={"content-type": REQUEST})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")


def test_large_requests_are_opened_beside_the_event_loop(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs a key to send one, and everybody waits for the loop."""
    threads: dict[int, int] = {}

    def noted(message: bytes) -> BinaryRequest:
        threads[len(message)] = threading.get_ident()
        return decode_request(message)

    monkeypatch.setattr(gateway, "decode_request", noted)
    for size in (10, 2 * gateway.INLINE_BYTES):
        client = ClientRequest(KEY.config)
        request = BinaryRequest("POST", "https", "x", "/healthz", (), bytes(size))
        response = httpx.post(
            stack.gateway_url + WELL_KNOWN,
            content=client.seal(encode_request(request)),
            headers={"content-type": CHUNKED_REQUEST},
        )
        decoder = ResponseDecoder()
        decoder.feed(client.response().feed(response.content, ended=True), ended=True)
        assert decoder.status == 405
    assert len(set(threads.values())) == len(threads) == 2


def test_a_gateway_inside_a_gateway_is_no_loop(stack: Stack) -> None:
    inner = ClientRequest(KEY.config).seal(encode_request(BinaryRequest("GET", "https", "x", "/healthz")))
    request = BinaryRequest("POST", "https", "x", WELL_KNOWN, (("content-type", CHUNKED_REQUEST),), inner)
    client = ClientRequest(KEY.config)
    response = httpx.post(
        stack.gateway_url + WELL_KNOWN,
        content=client.seal(encode_request(request)),
        headers={"content-type": CHUNKED_REQUEST},
    )
    decoder = ResponseDecoder()
    decoder.feed(client.response().feed(response.content, ended=True), ended=True)
    assert decoder.status == 404


def test_limits_of_the_relay(stack: Stack) -> None:
    kind = {"content-type": CHUNKED_REQUEST}
    assert httpx.post(stack.relay_url, content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.post(stack.relay_url, content=bytes(18 << 20), headers=kind).status_code == 413
    assert httpx.get(stack.relay_url).status_code == 405
    assert httpx.post(stack.relay_url, content=b"x", headers=kind).status_code == 400
    assert httpx.get(f"{stack.relay_url}/healthz").json() == {"status": "ok"}


def test_a_relay_without_its_gateway(tmp_path: Path) -> None:
    relaying = Relay(gateway_url("http://127.0.0.1:9"))
    with running(relaying.app) as port:
        made = {"relay": f"http://127.0.0.1:{port}", "gateway_key": KEY.config.to_bytes(), "cache_dir": tmp_path}
        with Client(SERVER, max_retries=0, **made) as client, pytest.raises(DELClientError, match="HTTP 502"):
            client.models()


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"gateway_key": None}, "gateway_key"),
        ({"gateway_key": "zz"}, "gateway_key"),
        ({"gateway_key": b"\x01" * 40}, "gateway_key"),
        ({"relay": "http://relay.example"}, "relay"),
        ({"relay": "ftp://127.0.0.1"}, "relay"),
        ({"transport": httpx.MockTransport(lambda _: httpx.Response(200))}, "relay"),
        ({"transport": httpx.MockTransport(lambda _: httpx.Response(200)), "relay": None}, "gateway_key"),
    ],
)
def test_options_that_would_not_hide_the_caller_are_refused(wrong: dict[str, Any], field: str) -> None:
    made = {"relay": "http://127.0.0.1:9", "gateway_key": KEY.config.to_list(), **wrong}
    with pytest.raises(InvalidRequestError) as caught:
        Client(SERVER, **made)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (200, {"content-type": "application/json"}, "ProtocolError"),
        (200, {"content-type": "message/ohttp-chunked-res", "content-encoding": "gzip"}, "ProtocolError"),
        (200, {"content-type": "message/ohttp-chunked-res"}, "ProtocolError"),
        (204, {}, "ProtocolError"),
        (302, {"location": "http://elsewhere.invalid"}, "RedirectRefusedError"),
        (429, {"set-cookie": "a=b"}, "RateLimitError"),
        (500, {}, "ServerError"),
    ],
)
def test_a_relay_that_answers_by_itself_is_no_server(
    status: int, headers: dict[str, str], kind: str, tmp_path: Path
) -> None:
    async def relay(scope: Scope, receive: Receive, send: Send) -> None:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        body = b'{"data": [{"id": "forged"}]}' * 10 if status != 204 else b""
        await send({"type": "http.response.body", "body": body})

    with running(relay) as port:
        made = {"relay": f"http://127.0.0.1:{port}", "gateway_key": KEY.config.to_bytes(), "cache_dir": tmp_path}
        with Client(SERVER, max_retries=0, **made) as client, pytest.raises(DELClientError) as caught:
            client.models()
    assert type(caught.value).__name__ == kind


def test_another_implementation_of_hpke_reaches_the_gateway(stack: Stack) -> None:
    """`@hpke/core`, with the rest of RFC 9458 written beside it."""
    node = shutil.which("node")
    if node is None or not (NODE_PROJECT / "node_modules" / "@hpke" / "core").is_dir():
        pytest.fail("Node.js 20 or newer and the packages of tests/end_to_end/node are needed; see scripts/install")
    asked = BinaryRequest("GET", "https", "del.example", "/v1/models", (("authorization", f"Bearer {API_KEY}"),))
    arguments = [stack.gateway_url + WELL_KNOWN, KEY.config.to_bytes().hex(), encode_request(asked).hex()]
    done = subprocess.run(
        [node, NODE_PROJECT / "oblivious.mjs", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    decoder = ResponseDecoder()
    content = decoder.feed(bytes.fromhex(done.stdout), ended=True)
    assert decoder.status == 200
    assert {model["id"] for model in json.loads(content)["data"]} >= {"open", "strict"}
