"""OpenAI's own package for Node, unchanged, against the proxy."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer, answer, error, expected_text, expected_tokens

NODE_PROJECT = Path(__file__).parent / "node"
_MISSING = "Node.js 20 or newer, npm and the packages of tests/proxy/node are needed; scripts/install installs the last"


@pytest.fixture
def seen(proxy: RunningProxy, server: ScriptedServer) -> dict[str, Any]:
    """What the scenarios of tests/client_lib/proxy/node/scenarios.mjs saw."""
    node = shutil.which("node")
    if node is None or not (NODE_PROJECT / "node_modules" / "openai").is_dir():
        pytest.fail(_MISSING)
    # The last scenario meets a server without room; the ones before it send 6 prompts.
    server.script.extend([answer] * 6 + [error(503, "overloaded", {"retry-after": "61"})])
    done = subprocess.run(
        [node, NODE_PROJECT / "scenarios.mjs", proxy.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_everything_that_an_application_does(seen: dict[str, Any]) -> None:
    assert seen["chat"]["content"] == expected_text(expected_tokens(12))
    assert seen["chat"]["usage"]["completion_tokens"] == 12
    assert seen["chat"]["requestId"] == "string"
    assert seen["chatStream"]["text"] == expected_text(expected_tokens(9))
    assert seen["chatStream"]["finish"] == ["length"]
    assert seen["chatStream"]["usage"]["completion_tokens"] == 9
    assert seen["chatStream"]["pieces"] > 4
    assert seen["completion"] == expected_text(expected_tokens(16))
    assert seen["completionText"] == expected_text(expected_tokens(6))
    assert seen["models"] == ["strict", "open"]
    assert seen["grown"] == 1
    assert seen["abandoned"] is True
    for name, kind, status, code, param in (
        ("unknownModel", "NotFoundError", 404, "model_not_found", "model"),
        ("tools", "BadRequestError", 400, "unsupported_parameter", "tools[0].type"),
        ("unknownField", "BadRequestError", 400, "unsupported_parameter", "min_tokens"),
        ("busy", "InternalServerError", 503, "overloaded", None),
    ):
        assert seen[name] == {"name": kind, "status": status, "code": code, "param": param, "hasRequestId": True}
