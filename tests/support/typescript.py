"""Builds and runs the reference client in TypeScript."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

__all__ = ["PROJECT", "ask", "build", "node"]

PROJECT = Path(__file__).parents[2] / "examples" / "typescript"
_MISSING = (
    "Node.js 20 or newer, npm and the packages of examples/typescript are needed; scripts/install installs the last"
)


def build(directory: Path) -> Path:
    """Compile the client into a directory; fail the test without Node or the compiler."""
    compiler = PROJECT / "node_modules" / "typescript" / "bin" / "tsc"
    if shutil.which("node") is None or not compiler.is_file():
        pytest.fail(_MISSING)
    done = node(compiler, "--project", PROJECT, "--outDir", directory)
    assert done.returncode == 0, done.stdout
    (directory / "package.json").write_text('{"type": "module"}')
    return directory


def node(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run Node."""
    command = ["node", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


def ask(built: Path, url: str, prompt: str, *options: str) -> dict[str, Any]:
    """Return the completion that the client's command prints."""
    done = node(built / "main.js", "--url", url, "--json", *options, text=prompt)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
