"""Commands without a server: they say so early, end in time, and a proxy waits for it."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from delctl.main import run
from tests.support.bundle import make_bundle
from tests.support.proxy_command import running_proxy
from tests.support.relay import Relay
from tests.support.scripted_server import ScriptedServer


@pytest.fixture
def nothing_there() -> Iterator[str]:
    """A URL where connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_ask_says_that_it_retries_and_how_to_start_a_server(
    nothing_there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path))
    assert run(["ask", "hello", "--variant", "open", "--url", nothing_there]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"retrying {nothing_there} (ConnectionFailedError) ..."
    assert len(said) == 2
    assert f"{nothing_there} cannot be reached" in said[1]
    assert "`delctl serve`" in said[1]


def test_a_proxy_starts_before_its_server(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with ScriptedServer(bundle).running() as server, contextlib.ExitStack() as stack:
        port = int(server.url.rpartition(":")[2])
        relay = stack.enter_context(Relay(port, random.Random(1)).running())
        relay.kill()
        process, own = stack.enter_context(running_proxy(relay.url, tmp_path / "cache"))
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert "cannot be reached yet" in lines[-1]
        assert "`delctl serve`" in lines[-1]
        assert httpx.get(f"{own}/healthz", trust_env=False).status_code == 200
        not_ready = httpx.get(f"{own}/readyz", trust_env=False, timeout=30)
        assert (not_ready.status_code, not_ready.json()["error"]["code"]) == (502, "upstream_unreachable")
        api = stack.enter_context(openai.OpenAI(base_url=f"{own}/v1", api_key="unused", timeout=120))
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError) as caught:
            api.completions.create(model="open", prompt="hello")
        # One layer of retries: OpenAI's package does not ask again.
        assert time.monotonic() - began < 40
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert caught.value.code == "upstream_unreachable"
        assert relay.url.removeprefix("http://") not in str(caught.value)
        assert "`delctl serve`" in str(caught.value)
        relay.revive()
        while "models" not in (line := process.stdout.readline()):
            assert line, "the proxy has ended"
        assert httpx.get(f"{own}/readyz", trust_env=False, timeout=30).status_code == 200
        assert api.completions.create(model="open", prompt="hello", max_tokens=2).choices
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(30) == 0
    assert re.search(r"^retrying http\S+ \(ConnectionFailedError\) \.\.\.$", said, re.MULTILINE)


def test_a_wrong_option_ends_a_proxy_that_has_waited(tmp_path: Path) -> None:
    with ScriptedServer(make_bundle(tmp_path / "bundle")).running() as server, contextlib.ExitStack() as stack:
        relay = stack.enter_context(Relay(int(server.url.rpartition(":")[2]), random.Random(1)).running())
        relay.kill()
        process, _ = stack.enter_context(running_proxy(relay.url, tmp_path / "cache", "--variant", "nonsense"))
        relay.revive()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--variant" in said
    assert "nonsense" in said
