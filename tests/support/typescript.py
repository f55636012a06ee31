"""Builds and runs the TypeScript client, and the example that uses it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

__all__ = ["CLIENTS", "PACKAGE", "ask", "build", "node", "run", "tool"]

_ROOT = Path(__file__).parents[2]
CLIENTS = _ROOT / "clients"
PACKAGE = CLIENTS / "typescript"
_EXAMPLE = _ROOT / "examples" / "typescript"
_MISSING = "Node.js 20 or newer, npm and the packages of clients are needed; scripts/install installs the last"


def tool(name: str) -> Path:
    """Return a program among the packages of ``clients``; fail the test without it or Node."""
    path = CLIENTS / "node_modules" / name
    if shutil.which("node") is None or not path.is_file():
        pytest.fail(_MISSING)
    return path


def build(directory: Path) -> Path:
    """Compile and check package, tests, playground and example below a directory.

    The package is in ``node_modules/del-serve`` as it is published, the programs of its tests in
    ``typescript/test``, and the example in ``example/dist``. Returns the directory.
    """
    compiler = tool("typescript/bin/tsc")
    package = directory / "node_modules" / "del-serve"
    shutil.copytree(_EXAMPLE / "src", directory / "example" / "src")
    shutil.copy(_EXAMPLE / "tsconfig.json", directory / "example")
    package.mkdir(parents=True)
    shutil.copy(PACKAGE / "package.json", package)
    (directory / "package.json").write_text('{"type": "module"}')
    for options in (
        ("--project", CLIENTS / "tsconfig.test.json", "--outDir", directory),
        ("--project", directory / "example"),
    ):
        done = node(compiler, *options)
        assert done.returncode == 0, done.stdout
        if not (package / "dist").exists():
            shutil.copytree(directory / "typescript" / "src", package / "dist")
    return directory


def node(*arguments: object, text: str = "", directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Node."""
    command = ["node", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False, cwd=directory)


def run(built: Path, code: str, **given: Any) -> Any:
    """Run the body of an async function with the package ``del`` and the values of ``given``.

    Returns what it returns. An error that it throws is returned as an object with ``name``,
    ``message``, ``code`` and, if it has them, ``changes``.
    """
    program = f"""
        import * as del from "del-serve";
        const given = {json.dumps(given)};
        const work = async ({", ".join(given)}) => {{ {code} }};
        const failed = ({{ name, message, code, changes }}) => ({{ name, message, code, changes }});
        console.log(JSON.stringify((await work(...Object.values(given)).catch(failed)) ?? null));
    """
    path = "--input-type=module"
    done = node(path, "--eval", program, directory=built)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(built: Path, url: str, prompt: str, *options: str) -> dict[str, Any]:
    """Return the completion that the example prints."""
    done = node(built / "example" / "dist" / "main.js", "--url", url, "--json", *options, text=prompt)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
