"""``delctl playground``: the application, and the page in a real browser."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from del_core import demo
from del_core.bundle import ClientBundle, load_client, pack_client
from del_core.wire import MEDIA_TYPE, PrivateSegment, PublicSegment
from delctl.playground.app import COMPLETIONS, Playground, Shown
from tests.support.chromium import chromium
from tests.support.scripted_server import Received, ScriptedServer, error, raw, says
from tests.support.typescript import CLIENTS, node, tool

PAGE = CLIENTS / "playground"
SHIPPED = Path(__file__).parents[2] / "delctl" / "playground" / "page"


@pytest.fixture(scope="module")
def bundle() -> ClientBundle:
    return load_client(demo.smollm2_bundle_path() / "client")


# ------------------------------------------------------------------ the application


def _shown(server: str, key: str | None = None) -> Shown:
    return Shown(server, "0" * 64, b"archive", 128, None, None, key)


@contextmanager
def _application(shown: Shown) -> Iterator[httpx.Client]:
    """A client of the application, through its ASGI interface."""
    page = Playground(shown)

    class Transport(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            async def exchange() -> tuple[int, httpx.Headers, bytes]:
                async with httpx.AsyncClient(transport=httpx.ASGITransport(page.app)) as client:
                    sent = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
                    answer = await client.send(sent)
                    return answer.status_code, answer.headers, answer.content

            status, headers, content = asyncio.run(exchange())
            return httpx.Response(status, headers=headers, content=content)

    with httpx.Client(transport=Transport(), base_url="http://127.0.0.1:8090") as client:
        yield client


def test_every_answer_forbids_everything_from_elsewhere() -> None:
    with _application(_shown("http://127.0.0.1:1")) as client:
        for path in ("/", "/app.js", "/style.css", "/icon.svg", "/playground.json", "/v1/bundle", "/prior", "/nowhere"):
            answer = client.get(path)
            if path == "/nowhere":
                assert answer.status_code == 404
                continue
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in answer.headers
        assert client.get("/").headers["content-type"].startswith("text/html")
        bundle = client.get("/v1/bundle")
        assert (bundle.content, bundle.headers["etag"]) == (b"archive", f'"{"0" * 64}"')
        assert bundle.headers["x-del-context-length"] == "128"


def test_it_is_for_its_own_page_on_this_machine() -> None:
    with _application(_shown("http://127.0.0.1:1")) as client:
        # Another name that resolves to this machine, and another page of this browser.
        assert client.get("/", headers={"host": "rebound.example.org"}).status_code == 403
        frame = {"content-type": MEDIA_TYPE}
        assert client.post(COMPLETIONS, headers={**frame, "origin": "http://127.0.0.1:1"}).status_code == 403
        assert client.post(COMPLETIONS, headers={"content-type": "text/plain"}).status_code == 415
        refused = client.post(COMPLETIONS, headers={**frame, "origin": "http://127.0.0.1:8090"})
        assert refused.status_code == 502  # the server cannot be reached
        assert refused.json()["error"]["code"] == "server_unreachable"


def test_a_frame_goes_to_the_server_with_the_key_and_nothing_else_of_the_browser() -> None:
    server = ScriptedServer(load_client(demo.bundle_path() / "client"))

    async def behave(_: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        body = b'{"bytes": %d}' % len(received.body)
        head = b"HTTP/1.1 429 X\r\nset-cookie: a=b\r\nretry-after: 7\r\ncontent-type: application/json\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    server.script.append(behave)
    with server.running(), _application(_shown(server.url, "secret-key")) as client:
        headers = {"content-type": MEDIA_TYPE, "cookie": "a=b", "user-agent": "browser", "idempotency-key": "k"}
        answer = client.post(COMPLETIONS, content=b"frame", headers=headers)
        assert "secret-key" not in client.get("/playground.json").text
    assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (429, {"bytes": 5}, "7")
    assert "set-cookie" not in answer.headers
    (received,) = server.requests_to(COMPLETIONS)
    assert received.headers["authorization"] == "Bearer secret-key"
    assert received.headers["idempotency-key"] == "k"
    assert "cookie" not in received.headers
    assert "browser" not in received.headers["user-agent"]


def test_a_frame_is_bounded() -> None:
    with _application(_shown("http://127.0.0.1:1")) as client:
        large = b"x" * ((16 << 20) + 1)
        assert client.post(COMPLETIONS, content=large, headers={"content-type": MEDIA_TYPE}).status_code == 413


# ------------------------------------------------------------------ what is shipped


def test_the_shipped_program_is_the_one_that_the_sources_give(tmp_path: Path) -> None:
    tool("esbuild/package.json")
    done = node(PAGE / "build.mjs", tmp_path / "app.js")
    assert done.returncode == 0, done.stderr
    message = "run: cd clients/playground && node build.mjs"
    assert (tmp_path / "app.js").read_bytes() == (SHIPPED / "app.js").read_bytes(), message


def test_the_page_names_no_other_place_and_has_nothing_inline() -> None:
    page = (SHIPPED / "index.html").read_text("utf-8")
    assert "http" not in page
    assert "style=" not in page
    assert "onclick" not in page
    assert page.count("<script") == 1
    assert "@import" not in (SHIPPED / "style.css").read_text("utf-8")


# ------------------------------------------------------------------ in a browser


@contextmanager
def playground(server: str, directory: Path) -> Iterator[str]:
    """Run the command; return the page's URL."""
    command = [sys.executable, "-m", "delctl.main", "playground", "--server", server, "--port", "0"]
    environment = {**os.environ, "DEL_CONFIG_DIR": str(directory), "DEL_CACHE_DIR": str(directory)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_a_private_question_in_a_browser(bundle: ClientBundle, tmp_path: Path) -> None:
    async def answer(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        clear = server.decode(received.body).variant == "clear"
        await says("To the clear text." if clear else "To the counts <b>alone</b>.")(server, received, writer)

    server = ScriptedServer(bundle)
    server.script.extend([answer, answer, answer, error(400, "invalid_value", message="it was refused")])
    browser = chromium()
    with server.running(), playground(server.url, tmp_path) as url:
        done = node(PAGE / "test" / "browser.mjs", browser, url)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["errors"] == []
    assert found["elsewhere"] == []

    question = "I have had a bad toothache since last night. What should I do?"
    assert found["first"]["marks"] == [question]
    assert found["first"]["tokens"] == 16
    epsilon, size, read, audit = found["first"]["figures"]
    assert (epsilon, size) == ("72", "16 B")
    stated = bundle.variant("strict").strongest_attack
    assert stated is not None
    assert audit == f"{100 * stated['success']:.1f} %"
    assert read.endswith("of 16")

    assert found["skipped"] == "text"
    assert found["detected"] == ["+49 30 901820"]
    assert found["marked"] == ["Ann", "+49 30 901820"]
    assert found["typed"] == ["Annn", "+49 30 901820"]  # what is typed within a private part is private
    assert found["levels"] == ["strict", "balanced"]
    assert found["answer"] == "To the counts <b>alone</b>."
    assert "private text has not left this device" in found["notAsked"]
    assert found["clear"] == "To the clear text."
    assert found["again"][0] == found["alone"][0]
    assert found["markup"] == 0
    assert found["kept"]
    assert found["phone"]
    assert len(set(found["themes"])) == 2
    assert found["refused"] == "it was refused"

    first, *others, last = (server.decode(frame) for frame in server.frames)
    again, clear = sorted(others, key=lambda request: request.variant == "clear")
    assert (first.variant, again.variant, clear.variant, last.variant) == (
        "balanced",
        "balanced",
        "clear",
        "strict",
    )
    assert first.segments == again.segments  # the noise was drawn once
    assert [type(part) for part in first.segments].count(PrivateSegment) == 2
    assert all(isinstance(part, PublicSegment) for part in clear.segments)
    assert 2 in first.sampling.stop_token_ids  # the end of the assistant's turn
    (prior,) = {request.prompt_tokens for request in (first, again, clear)}
    assert prior > 30  # with the chat template


def test_a_server_that_is_not_there_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "delctl.main", "playground", "--server", "http://127.0.0.1:9", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert done.stdout == ""


def test_the_bundle_is_verified_before_the_page_is_served(bundle: ClientBundle, tmp_path: Path) -> None:
    server = ScriptedServer(bundle)
    archive = bytearray(pack_client(bundle.path))
    archive[20_000] ^= 1
    server.bundle_script.append(raw(bytes(archive), "application/x-tar"))
    with server.running():
        command = [sys.executable, "-m", "delctl.main", "playground", "--server", server.url, "--port", "0"]
        environment = {**os.environ, "DEL_CONFIG_DIR": str(tmp_path), "DEL_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert "the file was altered" in done.stderr
    assert done.stdout == ""
