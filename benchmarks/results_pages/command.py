"""Write the tables of docs/results: python -m benchmarks.results_pages [--check]

A page holds text written by hand and marked tables, whose figures come from the committed JSON of
benchmarks/results. A table between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` is replaced;
everything else stays as it is. Plots beside the JSON are moved into docs/results/plots.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.results_pages.compatibility import COMPATIBILITY
from benchmarks.results_pages.privacy_utility import PRIVACY_UTILITY
from benchmarks.results_pages.smollm2 import SMOLLM2
from benchmarks.results_pages.smollm2_comparison import SMOLLM2_COMPARISON
from benchmarks.results_pages.smollm2_paper import SMOLLM2_PAPER
from benchmarks.results_pages.systems import SYSTEMS
from benchmarks.results_pages.tables import RESULTS, Table

__all__ = ["DOCS", "PAGES", "fill", "main", "outdated"]

_ROOT = Path(__file__).parents[2]
DOCS = _ROOT / "docs" / "results"

PAGES: dict[str, dict[str, Table]] = {
    **SYSTEMS,
    **COMPATIBILITY,
    **PRIVACY_UTILITY,
    **SMOLLM2,
    **SMOLLM2_COMPARISON,
    **SMOLLM2_PAPER,
}
"""The tables of each page by name."""


def fill(page: str, name: str, table: str) -> str:
    """Replace one marked table of a page. Raises ValueError if the page lacks the marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, opened, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"the page has no {begin} and {end}")
    return f"{before}{begin}\n\n{table.strip()}\n\n{end}{after}"


def _filled(name: str) -> str:
    page = (DOCS / name).read_text(encoding="utf-8")
    for block, table in PAGES[name].items():
        page = fill(page, block, table())
    return page


def outdated() -> list[str]:
    """Return the names of the pages that differ from what the committed results say."""
    return [name for name in PAGES if _filled(name) != (DOCS / name).read_text(encoding="utf-8")]


def _move_plots() -> None:
    for plot in sorted(RESULTS.glob("*/*.png")):
        target = DOCS / "plots" / f"{plot.parent.name}-{plot.name}"
        target.parent.mkdir(exist_ok=True)
        plot.replace(target)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a page is not current.")
def main(check: bool) -> None:
    """Write the tables of docs/results from the committed results."""
    if check:
        if found := outdated():
            raise click.ClickException(f"run python -m benchmarks.results_pages: {', '.join(found)}")
        return
    _move_plots()
    for name in outdated():
        (DOCS / name).write_text(_filled(name), encoding="utf-8")
        click.echo(f"docs/results/{name}")
