"""The client's types in an application: strict mypy and pyright, and type completeness.

The packages are put where an installer would put them, so a package without its ``py.typed`` fails
here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYRIGHT = HERE / "node_modules" / "pyright" / "index.js"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application in a directory of its own, with the client installed beside it."""
    project = tmp_path_factory.mktemp("project")
    for name in ("client_lib", "del_core"):
        for file in (ROOT / name).rglob("*"):
            if file.suffix == ".py" or file.name == "py.typed":
                copy = project / "site" / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    for name in ("application.py", "mistakes.py"):
        shutil.copy(HERE / name, project / name)
    settings = {"include": ["application.py", "mistakes.py"], "typeCheckingMode": "strict"}
    (project / "pyrightconfig.json").write_text(json.dumps(settings))
    return project


def wrong_lines() -> set[int]:
    """The lines of mistakes.py that have to be errors."""
    lines = (HERE / "mistakes.py").read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# error")}


def environment(project: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(project / "site"), "MYPYPATH": ""}


def pyright(project: Path, *options: str) -> dict[str, Any]:
    """What pyright reports, as it does in JSON."""
    node = shutil.which("node")
    if node is None or not PYRIGHT.exists():
        pytest.fail("needs Node.js 20 and the packages of tests/client_lib/typing: npm ci in that directory")
    command = [node, PYRIGHT, "--pythonpath", sys.executable, "--outputjson", *options]
    done = subprocess.run(
        command, cwd=project, env=environment(project), capture_output=True, text=True, timeout=240, check=False
    )
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_mypy(project: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--show-error-codes"]
    done = subprocess.run(
        [*command, "application.py", "mistakes.py"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line for line in errors if not line.startswith("mistakes.py:")] == []
    assert {int(line.split(":")[1]) for line in errors} == wrong_lines(), done.stdout


def test_pyright(project: Path) -> None:
    found = [one for one in pyright(project)["generalDiagnostics"] if one["severity"] == "error"]
    assert [one for one in found if Path(one["file"]).name != "mistakes.py"] == []
    assert {one["range"]["start"]["line"] + 1 for one in found} == wrong_lines()


def test_every_public_type_is_known(project: Path) -> None:
    report = pyright(project, "--verifytypes", "client_lib", "--ignoreexternal")["typeCompleteness"]
    assert Path(report["packageRootDirectory"]) == project / "site" / "client_lib"
    unknown = [f"{symbol['name']}: {one['message']}" for symbol in report["symbols"] for one in symbol["diagnostics"]]
    assert unknown == []
    assert report["completenessScore"] == 1
    assert report["exportedSymbolCounts"]["withKnownType"] > 500
