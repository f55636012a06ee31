"""The threat model names tests that exist, at least one for each threat."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/privacy/threat-model.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| asset"))
]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_threat_names_a_test(row: list[str]) -> None:
    assert len(row) == 5
    assert re.findall(r"`tests/[\w/]+\.py::test_\w+`", row[3])


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_named_tests_exist(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
