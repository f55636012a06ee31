"""How much disk the base install takes: python -m benchmarks.client_size [--json]

Makes a fresh virtual environment, installs this project without extras into it, packages coming from wherever pip is
configured to look, as wheels only (so that no compiler is needed), and adds up the files. pip's own packages, which
``venv`` brings, do not count.

install_mb     10^6 bytes of installed files, without byte-code caches
bytecode_mb    the caches (*.pyc): Python writes them on first use, and pip at once unless --no-compile is given
packages       the largest packages, 10^6 bytes without caches
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
_INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth", "wheel")
_SOURCES = ("del_core", "client_lib", "deployments", "cluster", "delctl", "pyproject.toml", "README.md", "LICENSE")


def install(directory: Path) -> Path:
    """A virtual environment with the base install; returns its site-packages."""
    # From a copy, so that building leaves nothing in the tree.
    source = directory / "source"
    source.mkdir()
    for name in _SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, source / name)
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    here = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = directory / "wheels"
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*here, *build], check=True)
    (wheel,) = wheels.glob("del_serve-*.whl")
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--only-binary", ":all:", str(wheel)], check=True)
    scheme = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=scheme))


def sizes(packages: Path) -> dict[str, object]:
    """The report on one site-packages directory."""
    plain: Counter[str] = Counter()
    bytecode = 0
    for path in packages.rglob("*"):
        top = path.relative_to(packages).parts[0]
        if not path.is_file() or path.is_symlink() or top.split("-")[0] in _INSTALLERS or top in _INSTALLERS:
            continue
        if path.suffix == ".pyc":
            bytecode += path.stat().st_size
        else:
            plain[top] += path.stat().st_size
    return {
        "install_mb": round(sum(plain.values()) / 1e6, 1),
        "bytecode_mb": round(bytecode / 1e6, 1),
        "packages": {name: round(size / 1e6, 1) for name, size in plain.most_common(12)},
    }


def measure() -> dict[str, object]:
    """The report that ``--json`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        return sizes(install(Path(folder)))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Measure the base install."""
    report = measure()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"base install {report['install_mb']} MB, byte code {report['bytecode_mb']} MB more")
    for name, size in report["packages"].items():  # type: ignore[attr-defined]
        click.echo(f"{size:8.1f}  {name}")


if __name__ == "__main__":
    main()
