"""The tables of docs/results are those of the committed JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.results_pages import command, tables
from benchmarks.results_pages.command import PAGES, fill, main, outdated

PAGES_ROOT = Path(__file__).parents[2] / "docs" / "results"


def test_every_page_is_current() -> None:
    assert outdated() == []
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0


def test_every_marked_table_is_written() -> None:
    """A mark that no command fills would hold a table that nothing checks."""
    for page in PAGES_ROOT.glob("*.md"):
        marks = re.findall(r"<!-- (.+): begin -->", page.read_text("utf-8"))
        assert marks == sorted(marks, key=marks.index) == list(PAGES.get(page.name, {})), page.name


def test_every_results_page_is_listed() -> None:
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)", (PAGES_ROOT / "index.md").read_text("utf-8")))
    assert listed == {page.name for page in PAGES_ROOT.glob("*.md")} - {"index.md"}


def test_another_figure_makes_a_page_outdated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for source in tables.RESULTS.rglob("*.json"):
        copy = tmp_path / source.relative_to(tables.RESULTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert outdated() == []
    changed = (tmp_path / "padding.json").read_text().replace('"ratio": 1.0172', '"ratio": 1.0182')
    (tmp_path / "padding.json").write_text(changed)
    assert outdated() == ["client.md"]
    found = CliRunner().invoke(main, ["--check"])
    assert found.exit_code == 1
    assert "client.md" in found.output


def test_the_command_writes_tables_and_moves_plots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docs, results = tmp_path / "docs", tmp_path / "results"
    (results / "run").mkdir(parents=True)
    (results / "run" / "curve.png").write_bytes(b"png")
    docs.mkdir()
    for name in PAGES:
        page = (PAGES_ROOT / name).read_text("utf-8")
        (docs / name).write_text(re.sub(r"(: begin -->).*?(<!-- )", r"\1\n\2", page, flags=re.DOTALL))
    monkeypatch.setattr(command, "DOCS", docs)
    monkeypatch.setattr(command, "RESULTS", results)
    assert CliRunner().invoke(main, []).exit_code == 0
    for name in PAGES:
        assert (docs / name).read_text("utf-8") == (PAGES_ROOT / name).read_text("utf-8")
    assert (docs / "plots" / "run-curve.png").read_bytes() == b"png"
    assert not (results / "run" / "curve.png").exists()


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- speed: begin -->"):
        fill("text", "speed", "| a |")
