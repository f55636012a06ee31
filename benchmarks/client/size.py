"""Disk use of the base install: python -m benchmarks.client.size [--json]

Creates a virtual environment, installs this project without extras from pip's configured index, as
wheels only (so that no compiler is needed), and adds up the files. pip itself does not count.

install_mb       10^6 bytes of installed files, without byte-code caches
bytecode_mb      caches (*.pyc): Python writes them on first use, pip unless --no-compile is given
packages         the largest packages, 10^6 bytes without caches
lean_install_mb, lean_bytecode_mb
                 the same for an install by requirements/client.lock, without unused packages

Both installs must work: a prompt is encoded, and the command line runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
_INSTALLERS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth", "wheel")
_LOCK = ROOT / "requirements" / "client.lock"
_USE = """
import asyncio
from client_lib import AsyncClient, Client, private, public
from del_core.demo import bundle_path
prompt = [public("a"), private(" doctor")]
with Client("http://127.0.0.1:9", bundle=bundle_path() / "client") as client:
    assert client.encode(prompt, variant="balanced").private_tokens
    assert client.epsilon("balanced") > 0
async def main():
    async with AsyncClient("http://127.0.0.1:9", bundle=bundle_path() / "client") as client:
        assert (await client.encode(prompt, variant="balanced")).private_tokens
asyncio.run(main())
print(bundle_path())
"""
_SOURCES = ("del_core", "client_lib", "deployments", "cluster", "delctl", "pyproject.toml", "README.md", "LICENSE")


def build(directory: Path) -> Path:
    """Build the wheel of this project."""
    # From a copy, so that building leaves nothing in the tree.
    source = directory / "source"
    source.mkdir()
    for name in _SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, source / name)
    here = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = directory / "wheels"
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*here, *command], check=True)
    (wheel,) = wheels.glob("del_serve-*.whl")
    return wheel


def install(environment: Path, *installs: Sequence[str]) -> Path:
    """Create a virtual environment with these packages; return its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    for arguments in installs:
        subprocess.run([*pip, "install", "--quiet", "--only-binary", ":all:", *arguments], check=True)
    scheme = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", scheme="venv", vars=scheme))


def check_works(environment: Path) -> None:
    """Fail unless an installed client encodes a prompt and its command line works."""
    binaries = environment / "bin"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = partial(subprocess.run, capture_output=True, text=True, cwd=environment, env=outside, check=False)
    done = run([str(binaries / "python"), "-c", _USE])
    assert done.returncode == 0, done.stderr
    bundle = done.stdout.strip()
    for arguments in (["inspect", bundle], ["ask", "--help"]):
        done = run([str(binaries / "delctl"), *arguments])
        assert done.returncode == 0, done.stderr
    done = run(
        [str(binaries / "delctl"), "ask", "a", "--variant", "open", "--url", "http://127.0.0.1:9", "--bundle", bundle]
    )
    assert "http://127.0.0.1:9" in done.stderr, done.stderr  # it got as far as the connection


def sizes(packages: Path) -> dict[str, object]:
    """Return the report on one site-packages directory."""
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
    """Return the report that ``--json`` prints."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = str(build(Path(folder)))
        plain, lean = Path(folder) / "plain", Path(folder) / "lean"
        report = sizes(install(plain, [wheel]))
        check_works(plain)
        alone = sizes(install(lean, ["--no-deps", "-r", str(_LOCK)], ["--no-deps", wheel]))
        check_works(lean)
        return {**report, "lean_install_mb": alone["install_mb"], "lean_bytecode_mb": alone["bytecode_mb"]}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(as_json: bool) -> None:
    """Measure the base install."""
    report = measure()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo(f"base install {report['install_mb']} MB, byte code {report['bytecode_mb']} MB more")
    click.echo(f"by client.lock {report['lean_install_mb']} MB, byte code {report['lean_bytecode_mb']} MB more")
    for name, size in report["packages"].items():  # type: ignore[attr-defined]
        click.echo(f"{size:8.1f}  {name}")


if __name__ == "__main__":
    main()
