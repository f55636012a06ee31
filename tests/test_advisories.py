"""``scripts/check_advisories.py``: which versions an advisory affects, and that locks are clean."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from packaging.version import Version

from scripts import check_advisories
from scripts.check_advisories import Advisory, findings, locked, main, read_database, write

RECORD = """\
id: PYSEC-2026-1
aliases: [CVE-2026-1]
affected:
- package: {name: Some.Package, ecosystem: PyPI}
  ranges:
  - type: ECOSYSTEM
    events: [{introduced: "0"}, {fixed: 1.2.0}, {introduced: 2.0.0}, {last_affected: 2.1.0}, {introduced: "3.0"}]
  versions: [1.0.0]
- package: {name: other, ecosystem: npm}
  ranges: [{type: ECOSYSTEM, events: [{introduced: "0"}]}]
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    for name, text in (
        ("some-package/PYSEC-2026-1.yaml", RECORD),
        ("listed/PYSEC-2026-2.yaml", "id: PYSEC-2026-2\naffected: [{package: {name: listed, ecosystem: PyPI}, "
         "versions: ['1.0', not-a-version]}]\n"),
        ("some-package/PYSEC-2026-3.yaml", "withdrawn: 2026-01-01\n" + RECORD.replace("2026-1", "2026-3")),
        ("elsewhere/PYSEC-2026-4.yaml", RECORD),
    ):  # fmt: skip
        file = tmp_path / "database" / "vulns" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "database"


def test_ranges_and_lists_say_which_versions_are_affected(database: Path) -> None:
    one, two = sorted(read_database(database, ["some-package", "listed"]), key=lambda found: found.id)
    affected = [text for text in ("0.9", "1.2.0", "2.0.0", "2.1.0", "2.1.1", "3.0", "4") if one.affects(Version(text))]
    assert affected == ["0.9", "2.0.0", "2.1.0", "3.0", "4"]
    assert two.affects(Version("1.0.0"))
    assert not two.affects(Version("1.1"))
    locks = {"some-package": {Version("2.1.0"): ["cpu.lock"], Version("2.2"): ["gpu.lock"]}}
    assert findings([one, two], locks) == ["some-package 2.1.0 (cpu.lock): PYSEC-2026-1, CVE-2026-1"]


def test_what_is_kept_is_read_back(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(read_database(database, ["some-package", "listed"]))
    monkeypatch.setattr(check_advisories, "KEPT", tmp_path / "kept.json")
    write(tmp_path / "kept.json", datetime.date(2026, 1, 1), found)
    locks = {"some-package": {Version("1.0"): ["cpu.lock"]}}
    monkeypatch.setattr(check_advisories, "locked", lambda: locks)
    assert main([], datetime.date(2026, 1, 2)) == 1
    locks["some-package"] = {Version("1.5"): ["cpu.lock"]}
    assert main([], datetime.date(2026, 1, 2)) == 0
    assert main(["--most-days", "30"], datetime.date(2026, 1, 31)) == 0
    assert main(["--most-days", "30"], datetime.date(2026, 2, 1)) == 1


def test_no_locked_version_is_affected_and_the_age_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the committed file: it says how old it is, and the locks hold what it is about."""
    assert main([]) == 0
    said = capsys.readouterr().out
    assert "days old" in said
    assert {"aiohttp", "cryptography", "torch"} <= locked().keys()
    assert Advisory("", "", (), (("0", None, False),), ()).affects(Version("1"))
