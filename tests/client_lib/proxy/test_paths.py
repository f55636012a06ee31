"""The spellings of paths, web pages of other origins, and the page at the root."""

from __future__ import annotations

import httpx
import pytest

from client_lib import InvalidRequestError
from client_lib.proxy import ProxySettings
from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer

CHAT = {"model": "open", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
ORIGIN = "https://app.example"


def preflight(proxy: RunningProxy, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-stainless-lang",
    }
    return httpx.options(f"{proxy.url}/v1/chat/completions", headers=headers, timeout=30, trust_env=False)


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/chat/completions", "/chat/completions/"])
def test_spellings_of_a_path(proxy: RunningProxy, path: str) -> None:
    assert proxy.post(path, CHAT).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/health/", 200),
        ("/models", 200),
        ("/models/open", 200),
        ("/models/other", 404),
        ("/v2/models", 404),
        ("/v1/v1/models", 404),
        ("//", 200),
    ],
)
def test_paths_that_are_read(proxy: RunningProxy, path: str, status: int) -> None:
    assert proxy.get(path).status_code == status


def test_the_page_says_what_this_is(make_proxy: MakeProxy) -> None:
    page = make_proxy(client_key="secret-key").get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "/v1/chat/completions" in page.text


def test_only_pages_of_an_allowed_origin_may_ask(make_proxy: MakeProxy, server: ScriptedServer) -> None:
    proxy = make_proxy(allow_origins=(ORIGIN,))
    allowed = preflight(proxy, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in preflight(proxy, "https://other.example").headers
    for stream in (False, True):
        answer = proxy.post("/v1/chat/completions", {**CHAT, "stream": stream}, headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == ORIGIN
    refused = proxy.post("/v1/chat/completions", {**CHAT, "n": 0}, headers={"origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, ORIGIN)


def test_without_the_option_no_page_may_ask(proxy: RunningProxy) -> None:
    assert "access-control-allow-origin" not in preflight(proxy, ORIGIN).headers


@pytest.mark.parametrize("origin", ["*", "app.example", "https://app.example/", "https://app.example/path", ""])
def test_origins_are_checked(origin: str) -> None:
    with pytest.raises(InvalidRequestError, match="allow_origins"):
        ProxySettings(allow_origins=(origin,))
    assert ProxySettings(allow_origins=("*",), client_key="a-long-enough-key").allow_origins == ("*",)
