"""The examples run as their own pages say, as processes, in front of a scripted server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from del_core import accounting
from del_core.wire import PrivateSegment
from tests.support.bundle import make_bundle
from tests.support.guide import ROOT, Block, Shell
from tests.support.scripted_server import Received, ScriptedServer, answer, error, expected_text, expected_tokens


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    with ScriptedServer(make_bundle(tmp_path / "bundle", names=("strict", "balanced"))).running() as running:
        yield running


@pytest.fixture
def shell(server: ScriptedServer, tmp_path: Path) -> Shell:
    return Shell(tmp_path / "clone", {"DEL_CACHE_DIR": str(tmp_path / "cache"), "DEL_URL": server.url})


def _epsilon(server: ScriptedServer, tokens: int) -> float:
    return accounting.epsilon(server.bundle.mechanism("balanced"), 1e-6, tokens)


# --- the batch ------------------------------------------------------------------------------------

LETTERS = [
    {"id": f"letter-{index}", "subject": f"subject-{index % 3}", "text": f"text number {index} of many"}
    for index in range(12)
]


def _batch(server: ScriptedServer, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    files = ["--input", directory / "in.jsonl", "--output", directory / "out.jsonl", "--ledger", directory / "users.db"]
    budget = [] if "--budget-epsilon" in options else ["--budget-epsilon", "1e6"]
    return subprocess.run(
        [sys.executable, ROOT / "examples/batch/run.py", "--server", server.url, *files, *budget, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DEL_CACHE_DIR": str(directory / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _output(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "out.jsonl").read_text().splitlines()]


def test_the_batch_goes_on_where_it_stopped(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(letter) + "\n" for letter in LETTERS))
    server.script.extend([answer] * 5 + [error(400, "context_length_exceeded"), error(401, "invalid_api_key")])
    first = _batch(server, tmp_path, "--at-once", "1")
    assert first.returncode == 1
    assert "0 done before, 12 to do" in first.stderr
    assert "letter-5: POST /v1/private/completions" in first.stderr
    assert "run it again to go on" in first.stderr
    assert [line["id"] for line in _output(tmp_path)] == [f"letter-{index}" for index in range(5)]

    with (tmp_path / "out.jsonl").open("a") as output:
        output.write('{"id": "letter-5", "comp')  # cut off by a crash
    second = _batch(server, tmp_path)
    assert second.returncode == 0, second.stderr
    assert "5 done before, 7 to do" in second.stderr
    lines = _output(tmp_path)
    assert sorted(line["id"] for line in lines) == sorted(letter["id"] for letter in LETTERS)
    assert {line["completion"] for line in lines} == {expected_text(expected_tokens(48))}
    assert len(server.frames) == 7 + 7  # every letter once, and the two that were refused

    third = _batch(server, tmp_path)
    assert (third.returncode, len(server.frames)) == (0, 14)


def test_the_batch_sends_no_more_at_once_than_it_may(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(letter) + "\n" for letter in LETTERS))
    inside, most, everyone = 0, 0, threading.Event()

    async def count(server: ScriptedServer, received: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 3:
            everyone.set()
        await asyncio.to_thread(everyone.wait, 10)
        await answer(server, received, writer)
        inside -= 1

    server.script.extend([count] * len(LETTERS))
    done = _batch(server, tmp_path, "--at-once", "3")
    assert done.returncode == 0, done.stderr
    assert (most, len(_output(tmp_path))) == (3, 12)


def test_the_batch_passes_over_whom_it_has_no_budget_for(server: ScriptedServer, tmp_path: Path) -> None:
    letters = [{"id": "long", "subject": "alice", "text": "many words " * 40}, *LETTERS[:2]]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(letter) + "\n" for letter in letters))
    done = _batch(server, tmp_path, "--budget-epsilon", str(_epsilon(server, tokens=60)))
    assert done.returncode == 1
    assert "long: " in done.stderr
    assert "many words" not in done.stderr
    assert {line["id"] for line in _output(tmp_path)} == {"letter-0", "letter-1"}
    assert len(server.frames) == 2
    assert _batch(server, tmp_path).returncode == 0  # with a larger budget
    assert len(_output(tmp_path)) == 3


# --- the chat with OpenAI's package ---------------------------------------------------------------


def test_the_chat_with_openais_package(server: ScriptedServer, shell: Shell) -> None:
    proxy = Block(".venv/bin/delctl proxy --server $DEL_URL --port 8081 --quiet", is_server=True)
    with shell.serving(proxy, "8081/healthz"):
        chat = ".venv/bin/python examples/with_openai/chat.py --url http://127.0.0.1:8081/v1"
        said = shell.run(Block(f'printf "hello\\nhow are you?\\n" | {chat}', is_server=False))
    assert said == 2 * (expected_text(expected_tokens(48)) + "\n")
    first, second = (server.decode(frame) for frame in server.frames)
    private = [[one for one in request.segments if isinstance(one, PrivateSegment)] for request in (first, second)]
    assert [len(segments) for segments in private] == [1, 2]  # the answer is the server's own
    assert private[0] == private[1][:1]  # the history as it was, not with fresh noise
