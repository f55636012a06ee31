"""The example runs, and the client's page names what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from client_lib import errors
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer, expected_text, expected_tokens

ROOT = Path(__file__).parents[2]


def test_the_quick_start_runs(tmp_path: Path) -> None:
    server = ScriptedServer(make_bundle(tmp_path / "bundle", names=("strict", "balanced")))
    with server.running():
        result = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "quickstart.py"), server.url],
            env={**os.environ, "DEL_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert re.match(r"epsilon of a private token at delta 1e-6: [0-9.]+\n", result.stdout)
    assert result.stdout.endswith(expected_text(expected_tokens(48)) + "\n")


def test_every_error_is_in_the_table() -> None:
    page = (ROOT / "docs/guides/client.md").read_text("utf-8")
    named = set(re.findall(r"^\| `(\w+)` \|", page.partition("## Errors")[2].partition("\n## ")[0], re.MULTILINE))
    kinds = {found.__name__ for name in errors.__all__ if isinstance(found := getattr(errors, name), type)}
    assert named == kinds - {"DELClientError"}
