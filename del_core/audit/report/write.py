"""An audit as files that are whole or not there."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from del_core.audit.report.page import render_page

__all__ = ["PartialResults", "write_report"]

JSON_FILE, PAGE_FILE, TOKENS_FILE = "audit.json", "index.html", "tokens.csv"

_PER_TOKEN = ("ids", "each", "each_rival")
"""What a variant's ``token_epsilons`` holds of every single token: a table of its own."""


def write_report(directory: Path, audit: Mapping[str, Any]) -> None:
    """Writes audit.json, tokens.csv and index.html into ``directory``, each complete before it takes its name."""
    summary = {**audit, "variants": {name: _without_tokens(found) for name, found in audit["variants"].items()}}
    contents = {
        TOKENS_FILE: _tokens_table(audit),
        PAGE_FILE: render_page(summary),
        JSON_FILE: json.dumps(summary, indent=2, allow_nan=False) + "\n",
    }
    directory.mkdir(parents=True, exist_ok=True)
    partial = {name: directory / f".{name}.partial" for name in contents}
    try:
        for name, content in contents.items():
            partial[name].write_text(content, encoding="utf-8")
        for name, path in partial.items():
            os.replace(path, directory / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _without_tokens(variant: Mapping[str, Any]) -> dict[str, Any]:
    each = {key: value for key, value in variant["token_epsilons"].items() if key not in _PER_TOKEN}
    return {**variant, "token_epsilons": each}


def _tokens_table(audit: Mapping[str, Any]) -> str:
    """Every token's own epsilons, one line for a variant's token; tokens by id, so that no text is in it."""
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("variant", "token", "worst", "worst_rival", "typical", "nearest", "nearest_rival"))
    for name, variant in audit["variants"].items():
        found = variant["token_epsilons"]
        each, rival = found["each"], found["each_rival"]
        columns = (each["worst"], rival["worst"], each["typical"], each["nearest"], rival["nearest"])
        for token, *figures in zip(found["ids"], *columns, strict=True):
            table.writerow((name, token, *figures))
    return lines.getvalue()


class PartialResults:
    """Results of variants that an interrupted audit has finished, in a directory beside the report's."""

    def __init__(self, out: Path) -> None:
        self._directory = out.parent / f".{out.name}.partial"

    def load(self, name: str, key: str) -> dict[str, Any] | None:
        """The stored result, or None if there is none for this key or it cannot be read."""
        try:
            found = json.loads(self._path(name, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def store(self, name: str, key: str, result: Mapping[str, Any]) -> None:
        """Keeps a variant's result."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(name, key)
        fresh = path.with_suffix(".writing")
        fresh.write_text(json.dumps(result), encoding="utf-8")
        os.replace(fresh, path)

    def clear(self) -> None:
        """Removes everything that was kept."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, name: str, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(f'{name}-{key}'.encode()).hexdigest()[:32]}.json"
