"""scripts/check_private.py: what counts as an import across a border, and that it finds one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_private import findings, may_import

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("one.wire.frame", "one._json.parse", True),
        ("one.wire.frame", "one.accounting._tails", False),
        ("one.accounting.binomial", "one.accounting._tails.tail", True),
        ("two.policy", "one._json", False),
        ("tests.two.conftest", "two._core.settings", False),
        ("two.client", "two._core.settings", True),
        ("two.client", "two.__version__", True),
    ],
)
def test_a_private_module_is_imported_below_its_folder_only(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_every_form_of_import_is_found(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for folder in ("del_core", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "del_core" / "_hidden.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "del_core" / "shown.py").write_text("from del_core._hidden import x\n_y = x\n", encoding="utf-8")
    (tmp_path / "del_core" / "other.py").write_text("from del_core.shown import _y\n", encoding="utf-8")
    (tmp_path / "tests" / "test_all.py").write_text(
        "import del_core._hidden\nfrom del_core import _hidden\nfrom del_core._hidden import x\n"
        'NAME = "del_core.'
        'shown._y"\nfrom del_core.shown import x as good\n',
        encoding="utf-8",
    )
    found = [line.split(": ")[0] for line in findings(tmp_path)]
    assert found == ["del_core/other.py:1", *(f"tests/test_all.py:{line}" for line in (1, 2, 3, 4))]


def test_import_linter_refuses_a_private_module(tmp_path: Path) -> None:
    for package in ("one", "two"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "one" / "_hidden.py").touch()
    (tmp_path / "two" / "user.py").write_text("import one._hidden\n", encoding="utf-8")
    (tmp_path / "contracts.toml").write_text(
        '[tool.importlinter]\nroot_packages = ["one", "two"]\n'
        'contract_types = ["private_modules: scripts.import_contracts.PrivateModulesContract"]\n'
        '[[tool.importlinter.contracts]]\nname = "private"\ntype = "private_modules"\n',
        encoding="utf-8",
    )
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports('contracts.toml'))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}, '.']; {program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "two.user -> one._hidden" in done.stdout
