"""The direction of imports: modules that are loaded, beyond the contracts in pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FRAMEWORKS = {"torch", "transformers", "peft", "accelerate", "ray", "vllm", "starlette", "pydantic"}
LAYERS = {"del_core", "client_lib", "deployments", "cluster", "delctl"}

# A module, and which of our layers may be loaded with it.
LIGHT = {
    "del_core.accounting": {"del_core"},
    "del_core.bundle": {"del_core"},
    "del_core.decoders": {"del_core"},
    "del_core.demo": {"del_core"},
    "del_core.errors": {"del_core"},
    "del_core.mechanism": {"del_core"},
    "del_core.wire": {"del_core"},
    "client_lib": {"client_lib", "del_core"},
    "delctl.main": {"delctl", "del_core"},
    "delctl.commands.ask": {"delctl", "del_core"},
    "delctl.commands.demo": {"delctl", "del_core"},
    "delctl.commands.doctor": {"delctl", "del_core"},
    "delctl.commands.inspect": {"delctl", "del_core"},
    "delctl.commands.proxy": {"delctl", "del_core"},
    "delctl.commands.serve": {"delctl", "del_core"},
}


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_framework_and_no_layer_above(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "top = {name.partition('.')[0] for name in sys.modules}\n"
        f"print(*sorted(top & {FRAMEWORKS | LAYERS!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()) <= LIGHT[module]


def test_every_layer_is_under_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert set(settings["root_packages"]) == LAYERS
    # The linter also reads imports inside functions and under TYPE_CHECKING.
    assert settings["exclude_type_checking_imports"] is False
    types = {contract["type"] for contract in settings["contracts"]}
    assert types == {"layers", "forbidden", "acyclic_siblings", "private_modules"}
    # A mechanism may import its accounting, from a function; nothing else is excepted.
    ignored = {name for contract in settings["contracts"] for name in contract.get("ignore_imports", ())}
    allowed = re.compile(r"del_core\.mechanism\.\w+ -> del_core\.accounting\.\w+")
    assert all(allowed.fullmatch(name) for name in ignored)


def test_the_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("package", "most"), [("del_core", 4), ("client_lib", 12), ("deployments", 4)])
def test_the_roots_of_packages_stay_small(package: str, most: int) -> None:
    """A new concept gets a folder, in which a newcomer finds it."""
    modules = sorted(path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py")
    assert len(modules) <= most, modules
