"""The client in fresh environments: every Python that is here, its size and its import time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
_MOST_MB = 150
_MOST_TIMES_NUMPY = 6
_PROGRAM = """
import json, subprocess, sys, time
def seconds(module):
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - begun
for module in ("numpy", "client_lib"):
    seconds(module)  # writes the byte code
ratios = sorted(seconds("client_lib") / seconds("numpy") for _ in range(7))
import client_lib, del_core
from client_lib.prompts.detect import detected
print(json.dumps({"version": del_core.__version__, "ratio": ratios[3], "spans": len(detected("call +49 30 901820"))}))
"""


def interpreters() -> dict[str, str]:
    """Return the supported Pythons of this machine that run."""
    found = {f"{sys.version_info.major}.{sys.version_info.minor}": sys.executable}
    for version in VERSIONS:
        path = shutil.which(f"python{version}")
        # A shim of a version manager may be there without its Python.
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.setdefault(version, path)
    return found


@pytest.mark.slow
def test_the_client_installs_without_a_compiler(tmp_path: Path) -> None:
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheel")]
    source = tmp_path / "source"
    kept = shutil.ignore_patterns(".*", "node_modules", "__pycache__", "build", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=kept)
    subprocess.run([sys.executable, *wheels, str(source)], check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    for version, interpreter in interpreters().items():
        environment = tmp_path / version
        subprocess.run([interpreter, "-m", "venv", str(environment)], check=True)
        python = environment / "bin" / "python"
        empty = _megabytes(environment)
        # No compiler: nothing but wheels.
        subprocess.run([python, *pip, "install", "--no-compile", "--only-binary", ":all:", str(wheel)], check=True)
        assert _megabytes(environment) - empty < _MOST_MB, version
        done = subprocess.run([python, "-c", _PROGRAM], capture_output=True, text=True, check=True, cwd=tmp_path)
        found = json.loads(done.stdout)
        assert found["spans"] == 2
        assert found["ratio"] < _MOST_TIMES_NUMPY, version
        said = subprocess.run([environment / "bin" / "delctl", "inspect", "demo"], capture_output=True, check=False)
        assert said.returncode == 0, said.stderr


def _megabytes(place: Path) -> float:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e6
