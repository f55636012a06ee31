"""Check that no private module or name is imported across its border; run by ``make check``.

- A module or package ``_x`` is imported only below the folder that holds it, in the same top-level
  package.
- A name ``_x`` of a module is imported only by that module.

Tests, benchmarks, scripts and examples are packages of their own. A name or module that a test
patches by a dotted string counts as imported.

Usage: check_private.py [ROOT]. Prints one line for each finding and exits with status 1 if there is
any.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = frozenset({"del_core", "client_lib", "deployments", "cluster", "delctl", "tests", "benchmarks", "scripts"})
DOTTED = re.compile(rf"(?:{'|'.join(sorted(PACKAGES))})(?:\.\w+)+")


def is_private(name: str) -> bool:
    """Return whether a name has a leading underscore and is no dunder name."""
    return name.startswith("_") and not name.endswith("__")


def may_import(importer: str, imported: str) -> bool:
    """Return whether the module ``importer`` may import ``imported``, a module or a name of one."""
    parts = imported.split(".")
    for index, part in enumerate(parts):
        if is_private(part):
            folder = parts[:index]
            if importer.split(".")[:index] != folder:
                return False
    return True


def module_name(path: Path) -> str:
    """Return the dotted name of a file, relative to the root."""
    parts = list(path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yield line, dotted name and whether the last part was imported from a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, False
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", True
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
            yield node.lineno, node.value, True


def findings(root: Path) -> Iterator[str]:
    """Yield one line for each import that crosses a border."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.py"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in sorted({name for name in listing.split("\0") if name}):
        path = root / name
        if not path.is_file():
            continue
        importer = module_name(Path(name))
        for line, imported, is_name in imported_names(ast.parse(path.read_text(encoding="utf-8"), name)):
            if imported.split(".")[0] not in PACKAGES:
                continue
            module = imported.rpartition(".")[0]
            crosses = is_name and is_private(imported.rpartition(".")[2]) and not is_module(root, imported)
            if not may_import(importer, imported) or (crosses and importer != module):
                yield f"{name}:{line}: imports {imported}, which is private to {private_to(imported)}"


def is_module(root: Path, dotted: str) -> bool:
    """Return whether a dotted name is a module or package of the tree."""
    path = root.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def private_to(imported: str) -> str:
    """Return the module or folder that may import a private name."""
    parts = imported.split(".")
    first = next(index for index, part in enumerate(parts) if is_private(part))
    return ".".join(parts[:first])


def main() -> int:
    """Print the findings; return the exit status."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    lines = list(findings(root))
    print("\n".join(lines) or "private names: none is imported across its border")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
