"""Every command of docs/guides/quickstart.md runs, in order, as a reader would type them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.bundle import make_bundle
from tests.support.guide import ROOT, Block, Shell, blocks
from tests.support.scripted_server import ScriptedServer, expected_text, expected_tokens

GUIDE = ROOT / "docs/guides/quickstart.md"
READY = {"serve": "8000/readyz", "proxy": "8081/healthz", "redis-server": "6379", "mobile_backend": "9000/readyz"}


def _shell(directory: Path) -> Shell:
    # redis-server may stand beside the interpreter, where make dev has put it.
    path = f"{os.environ['PATH']}{os.pathsep}{Path(sys.executable).parent}"
    return Shell(directory / "clone", {"DEL_CACHE_DIR": str(directory / "cache"), "PATH": path})


def _ready(block: Block) -> str:
    """Return the place where a server answers when it is up."""
    (found,) = [place for word, place in READY.items() if re.search(rf"\b{word}\b", block.text)]
    return found


def _walk(shell: Shell, *, skip: tuple[str, ...]) -> list[str]:
    """Run the page with its servers in the background; return the output of the commands."""
    install, *others = blocks(GUIDE)
    # What makes the environment that this test runs in; scripts/install has tests of its own.
    assert install.text == "make venv"
    (addition,) = [block for block in others if "pip install" in block.text]
    others.remove(addition)
    printed = []
    with contextlib.ExitStack() as servers:
        for block in others:
            if any(word in block.text for word in skip):
                continue
            if block.is_server:
                servers.enter_context(shell.serving(block, _ready(block)))
            else:
                printed.append(shell.run(block))
    return printed


def _check(printed: list[str], text: str | None) -> None:
    """Check completion, proxy's answer, chat, spending, backend's stream and batch."""
    asked, proxied, chatted, spent, key, streamed, batch = printed
    answer = json.loads(proxied)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] >= 1
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n") if line]
    assert "finish_reason" in events[-1]
    assert 0 < events[-1]["budget"]["tokens_left"] < 600
    assert key == ""
    assert batch == ""
    assert re.search(r"^alice +\d+\.\d\d +\d+\.\d%$", spent, re.MULTILINE), spent
    if text is not None:
        assert answer["choices"][0]["message"]["content"] == text
        assert chatted.startswith(text)
    assert asked.strip()
    assert chatted.strip()


def test_the_guide_against_a_scripted_server(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", names=("strict", "balanced"))
    with ScriptedServer(bundle).running() as server:
        shell = _shell(tmp_path)
        shell.use("8000", server.url.rpartition(":")[2])
        printed = _walk(shell, skip=("delctl serve",))
        _check(printed, expected_text(expected_tokens(16)))
        answers = (tmp_path / "clone" / "answers.jsonl").read_text().splitlines()
        assert len(answers) == 2
        assert (tmp_path / "clone" / "privacy.db").exists()


@pytest.mark.slow
def test_the_guide_as_it_stands(tmp_path: Path) -> None:
    shell = _shell(tmp_path)
    _check(_walk(shell, skip=()), None)
