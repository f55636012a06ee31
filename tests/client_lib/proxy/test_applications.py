"""Libraries that people use with OpenAI's API, unchanged but for base URL and model name.

Each runs in an environment of its own, with the pinned version of ``applications/NAME.txt``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.client_lib.proxy.conftest import MakeProxy
from tests.support.helpful import helpful
from tests.support.scripted_server import ScriptedServer

APPLICATIONS = Path(__file__).parent / "applications"
NAMES = sorted(path.stem for path in APPLICATIONS.glob("*.txt"))


def run(python: Path, name: str, url: str) -> dict[str, bool]:
    """Return what an application reports."""
    command = [python, APPLICATIONS / f"{name}.py", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=APPLICATIONS)
    assert done.returncode == 0, done.stderr
    results: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_application(name: str, make_proxy: MakeProxy, server: ScriptedServer, tmp_path: Path) -> None:
    venv.create(tmp_path / "environment", with_pip=True)
    python = tmp_path / "environment" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-r", APPLICATIONS / f"{name}.txt"]
    subprocess.run(install, check=True, timeout=1000, stdout=sys.stderr)
    server.script = helpful(server)
    results = run(python, name, make_proxy().url)
    assert results
    assert all(results.values()), results
