"""An environment for each library, and what its script reports."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CASES", "LIBRARIES", "Library", "install", "libraries", "run", "without_own_python"]

LIBRARIES = Path(__file__).parent / "libraries"
CASES = ("hello", "stream", "tools", "structured", "error")
"""What every script reports, with "yes" or what was wrong."""

_INSTALL_S, _RUN_S = 1200, 1200


@dataclass(frozen=True)
class Library:
    """A library of ``libraries.toml``; ``packages`` are requirements with exact versions.

    ``alone`` installs the packages without what they require; ``helpers`` then have what they use.
    ``first_call`` says that the library cannot demand a call of a tool, so that a small model needs
    a proxy that does.
    """

    name: str
    title: str
    script: str
    packages: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    alone: bool = False
    node: bool = False
    first_call: bool = False

    def versions(self) -> dict[str, str]:
        """Return the version of each package of the library."""
        if self.node:
            project = json.loads((LIBRARIES / "node" / "package.json").read_text("utf-8"))
            return {name: one for name, one in project["dependencies"].items() if name != "zod"}
        return {name.partition("[")[0]: version for name, _, version in (one.partition("==") for one in self.packages)}


@functools.cache
def libraries() -> dict[str, Library]:
    """Read ``libraries.toml``."""
    found = tomllib.loads((Path(__file__).parent / "libraries.toml").read_text("utf-8"))
    return {
        name: Library(
            name=name, **{key: tuple(value) if isinstance(value, list) else value for key, value in one.items()}
        )
        for name, one in found.items()
    }


def install(library: Library, place: Path) -> None:
    """Install a library into an environment below ``place``, unless it is there.

    uv installs it if it is on the path, else pip, from the configured index.
    """
    done = place / library.name / ".installed"
    wanted = json.dumps([library.versions(), library.helpers, sys.version])
    if done.is_file() and done.read_text("utf-8") == wanted:
        return
    environment = done.parent
    shutil.rmtree(environment, ignore_errors=True)
    if library.node:
        environment.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(LIBRARIES / "node" / name, environment / name)
        command = ["npm", "ci", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(command, check=True, cwd=environment, timeout=_INSTALL_S, stdout=sys.stderr)
    else:
        uv = shutil.which("uv")
        venv.create(environment, with_pip=uv is None)
        python = str(environment / "bin" / "python")
        pip = [python, "-m", "pip", "install", "-q"] if uv is None else [uv, "pip", "install", "-q", "--python", python]
        sets = [[*library.packages, *library.helpers]]
        if library.alone:
            sets = [["--no-deps", *library.packages], [*library.helpers]]
        for packages in sets:
            subprocess.run([*pip, *packages], check=True, timeout=_INSTALL_S, stdout=sys.stderr)
    done.write_text(wanted, "utf-8")


def run(library: Library, place: Path, *, url: str, model: str) -> dict[str, str]:
    """Run the script of an installed library; return "yes", or what was wrong, for each case."""
    environment = place / library.name
    if library.node:
        # Node finds packages from the script's own place.
        script = environment / Path(library.script).name
        shutil.copyfile(LIBRARIES / library.script, script)
        command = ["node", str(script)]
    else:
        command = [str(environment / "bin" / "python"), str(LIBRARIES / library.script)]
    try:
        done = subprocess.run(
            [*command, url, model],
            capture_output=True,
            text=True,
            timeout=_RUN_S,
            check=False,
            env=without_own_python(),
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(CASES, f"no end after {_RUN_S} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return dict.fromkeys(CASES, f"exit {done.returncode}: {done.stderr.strip()[-300:]}")
    found: dict[str, str] = json.loads(lines[-1])
    for name, said in found.items():
        if said != "yes":
            print(f"{library.name}: {name}: {said}", file=sys.stderr)
    return {name: (found.get(name) or "not tried").splitlines()[0] for name in CASES}


def without_own_python() -> dict[str, str]:
    """Return the environment without keys and what belongs to this process's own Python."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in dropped and not name.endswith("_API_KEY")}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
