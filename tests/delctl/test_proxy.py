"""``delctl proxy`` as a user runs it: a process of its own, in front of a scripted server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from del_core import accounting
from del_core.bundle import ChatFormat
from delctl import main
from tests.support.bundle import make_bundle
from tests.support.proxy_command import running_proxy
from tests.support.redis_server import RedisServer
from tests.support.scripted_server import Received, ScriptedServer, expected_text, expected_tokens, stream_events

MESSAGES = [{"role": "user", "content": "heliotrope"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedServer]:
    with ScriptedServer(make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")).running() as running:
        yield running


def rest_of(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return the rest of both outputs; communicate() would lose lines buffered by readline()."""
    assert process.stdout is not None
    assert process.stderr is not None
    rest = process.stdout.read(), process.stderr.read()
    process.wait(30)
    return rest


def test_a_chat_until_ctrl_c(server: ScriptedServer, tmp_path: Path) -> None:
    with running_proxy(server.url, tmp_path, "--alias", "gpt-4o=strict") as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
            answer = api.chat.completions.create(model="gpt-4o", messages=MESSAGES, max_tokens=4)
            assert answer.choices[0].message.content == expected_text(expected_tokens(4))
            assert answer.model == "strict"
        process.send_signal(signal.SIGINT)
        announced, said = rest_of(process)
    assert process.returncode == 0, said
    assert re.search(r"models +strict +epsilon \d", announced)
    assert "gpt-4o       stands for strict" in announced
    (line,) = said.splitlines()
    assert re.search(r"POST /v1/chat/completions 200 \d+\.\d+ s req_[0-9a-f]{32}$", line)


def test_sigterm_lets_answers_end_and_takes_no_more(server: ScriptedServer, tmp_path: Path) -> None:
    go_on = threading.Event()

    async def in_two_parts(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        events = stream_events(server.decode(received.body), "open")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        writer.write(b"".join(events[:2]))
        await writer.drain()
        await asyncio.to_thread(go_on.wait, 30)
        writer.write(b"".join(events[2:]))
        await writer.drain()
        writer.close()

    server.script.append(in_two_parts)
    with running_proxy(server.url, tmp_path, "--quiet") as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as api:
            stream = api.chat.completions.create(model="open", messages=MESSAGES, max_tokens=8, stream=True)
            texts = [next(stream).choices[0].delta.content or "" for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            _wait_until_refused(url)
            go_on.set()
            texts += [chunk.choices[0].delta.content or "" for chunk in stream]
        _, said = rest_of(process)
    assert "".join(texts) == expected_text(expected_tokens(8))
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("kept_in", ["a file", "redis"])
def test_policy_and_budget(server: ScriptedServer, tmp_path: Path, kept_in: str) -> None:
    with contextlib.ExitStack() as stack:
        place = str(tmp_path / "privacy.db")
        if kept_in == "redis":
            place = stack.enter_context(RedisServer.running()).url
        check_policy_and_budget(server, tmp_path, place)


def check_policy_and_budget(server: ScriptedServer, tmp_path: Path, place: str) -> None:
    per_token = {name: accounting.epsilon(server.bundle.mechanism(name), 1e-6) for name in ("strict", "open")}
    limit = (per_token["strict"] + per_token["open"]) / 2
    budget = accounting.epsilon(server.bundle.mechanism("strict"), 1e-6, 30)
    options = ["--max-epsilon-per-token", str(limit), "--ledger", place]
    options += ["--budget-epsilon", str(budget), "--quiet"]
    before = len(server.frames)
    with running_proxy(server.url, tmp_path, *options) as (process, url):
        refused = _complete(url, "open", "alice")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy_violation")
        answers = [_complete(url, "strict", "alice", 0)]
        while answers[-1].status_code == 200 and len(answers) < 40:
            answers.append(_complete(url, "strict", "alice", len(answers)))
        process.send_signal(signal.SIGTERM)
        announced, said = rest_of(process)
    assert (process.returncode, said) == (0, "")
    assert "refused: the epsilon of open at delta 1e-06" in announced
    assert answers[0].status_code == 200
    assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (429, "budget_exceeded")
    assert 0 < int(answers[-1].headers["retry-after"]) <= (30 * 24 + 1) * 3600  # to the end of its hour
    assert len(server.frames) - before == len(answers) - 1
    with running_proxy(server.url, tmp_path, *options) as (_, url):  # what was spent is still spent
        assert _complete(url, "strict", "alice").status_code == 429
        assert _complete(url, "strict", "bob").status_code == 200


def _complete(url: str, model: str, user: str, number: int = 0) -> httpx.Response:
    body = {"model": model, "prompt": f"the quick brown fox, number {number}", "user": user}
    return httpx.post(f"{url}/v1/completions", json=body, trust_env=False, timeout=30)


def _wait_until_refused(url: str) -> None:
    """Until no new connection is accepted; bounded by the test's own limit."""
    while True:
        try:
            httpx.get(f"{url}/healthz", trust_env=False, timeout=5)
        except httpx.TransportError:
            return


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--client-key"),
        (["--variant", "gone"], "Invalid value for --variant: must be one of strict, open, clear, got 'gone'"),
        (["--alias", "gpt-4o"], "must be NAME=VARIANT, such as gpt-4o=balanced, got 'gpt-4o'"),
        (["--alias", "gpt-4o=gone"], "Invalid value for --alias: must be one of strict, open, clear, got 'gone'"),
        (["--variant", "open", "--alias", "gpt-4o=strict"], "must be one of the offered open, got 'strict'"),
        (["--ledger", "x.db"], "--ledger and --budget-epsilon need each other"),
        (["--private", "pii", "--show"], "--show needs a terminal"),
        (["--budget-epsilon", "3"], "--ledger and --budget-epsilon need each other"),
        (
            ["--max-epsilon-per-token", "0.001"],
            "the epsilon of open at delta 1e-06 for 1 private tokens must be at most",
        ),
        (["--host", "192.0.2.1", "--client-key", "k"], "got 0 at 192.0.2.1"),
        (
            ["--host", "nowhere.invalid", "--client-key", "k"],
            "host must be an address of this machine, got 'nowhere.invalid'",
        ),
    ],
)
def test_options_are_checked(
    server: ScriptedServer,
    tmp_path: Path,
    options: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("DEL_PROXY_KEY", raising=False)
    assert main.run(["proxy", "--server", server.url, "--port", "0", *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


BAD = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"


def test_a_template_is_tried_before_anybody_chats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path))
    bundle = make_bundle(tmp_path / "bundle", chat=ChatFormat(BAD))
    own = tmp_path / "tokenizer_config.json"
    own.write_text(json.dumps({"chat_template": "{{ raise_exception('not today') }}"}), "utf-8")
    with ScriptedServer(bundle).running() as server:
        assert main.run(["proxy", "--server", server.url, "--port", "0"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "the bundle's chat template: template must be one that contains every content once" in said
        assert "--chat-template replaces it" in said
        assert main.run(["proxy", "--server", server.url, "--port", "0", "--chat-template", str(own)]) == 2
        assert "RefusedError (not today)" in capsys.readouterr().err
