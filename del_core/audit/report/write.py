"""Files of an audit report."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

from del_core.audit.report.page import render_page
from del_core.audit.results import AuditResult

_JSON_FILE, _PAGE_FILE, _TOKENS_FILE = "audit.json", "index.html", "tokens.csv"


def write_report(directory: Path, audit: AuditResult) -> None:
    """Write audit.json, tokens.csv and index.html; each file appears when it is complete."""
    content = json.dumps(audit.to_json(), indent=2, allow_nan=False) + "\n"
    _write(directory, {_TOKENS_FILE: _tokens_table(audit), _PAGE_FILE: render_page(audit), _JSON_FILE: content})


def read_report(directory: Path) -> AuditResult:
    """Read the audit.json of a report."""
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
        summary = variant.proven.token_epsilons
        if summary is None or summary.per_token is None:
            continue
        found = summary.per_token
        each, rival = found.each, found.each_rival
        columns = (each["worst"], rival["worst"], each["typical"], each["nearest"], rival["nearest"])
        for token, *figures in zip(found.ids, *columns, strict=True):
            table.writerow((name, token, *figures))
    return lines.getvalue()
