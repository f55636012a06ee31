"""Files of an audit report, and the results of variants that an interrupted audit has finished."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from pathlib import Path

from del_core._json import write_json_atomic
from del_core.audit import records
from del_core.audit.report.page import render_page
from del_core.audit.results import AuditResult, VariantAudit
from del_core.audit.runner import Results

_JSON_FILE, _PAGE_FILE, _TOKENS_FILE = "audit.json", "index.html", "tokens.csv"


def write_report(directory: Path, audit: AuditResult) -> None:
    """Write audit.json, tokens.csv and index.html; each file appears when it is complete."""
    _write(
        directory,
        {
            _TOKENS_FILE: _tokens_table(audit),
            _PAGE_FILE: render_page(audit),
            _JSON_FILE: json.dumps(audit.to_json(), indent=2, allow_nan=False) + "\n",
        },
    )


def read_report(directory: Path) -> AuditResult:
    """Read the audit.json of a report.

    Raises:
        ValueError: the file is no audit of this format version.
    """
    return AuditResult.from_json(json.loads((directory / _JSON_FILE).read_text(encoding="utf-8")))


def write_page(directory: Path) -> None:
    """Render index.html anew from the audit.json beside it."""
    _write(directory, {_PAGE_FILE: render_page(read_report(directory))})


def _write(directory: Path, contents: dict[str, str]) -> None:
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


def _tokens_table(audit: AuditResult) -> str:
    """Return one line for every token of a variant; tokens by id, so that it holds no text."""
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("variant", "token", "worst", "worst_rival", "typical", "nearest", "nearest_rival"))
    for name, variant in audit.variants.items():
        found = variant.proven.token_epsilons.per_token
        if found is None:
            continue
        each, rival = found.each, found.each_rival
        columns = (each["worst"], rival["worst"], each["typical"], each["nearest"], rival["nearest"])
        for token, *figures in zip(found.ids, *columns, strict=True):
            table.writerow((name, token, *figures))
    return lines.getvalue()


class PartialResults(Results):
    """Finished variants in a directory beside the report's."""

    def __init__(self, out: Path) -> None:
        self._directory = out.parent / f".{out.name}.partial"

    def load(self, name: str, key: str) -> VariantAudit | None:
        """Return the stored result; None if there is none for this key or it cannot be read."""
        try:
            return VariantAudit.from_json(json.loads(self._path(name, key).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def store(self, name: str, key: str, result: VariantAudit) -> None:
        """Keep the result of a variant, with the epsilons of every single token."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._path(name, key), records.to_json(result), indent=None)

    def clear(self) -> None:
        """Remove everything that was kept."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _path(self, name: str, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(f'{name}-{key}'.encode()).hexdigest()[:32]}.json"
