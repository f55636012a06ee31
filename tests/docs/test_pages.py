"""The Markdown pages: links, line length, navigation, diagrams, and tables that come from code."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import docs_site, docs_tables, render_diagrams

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").glob("*/README.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
WIDTH = 100

_PATH = re.compile(
    r"`((?:benchmarks|client_lib|cluster|del_core|delctl|deployments|docs|examples|scripts|tests)/[\w./-]+)`"
)
_LINK = re.compile(r"(?<!!)\[(?:`[^`]*`|[^\]`])*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)


def _prose(text: str) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a page outside code, comments and tables."""
    fenced = comment = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        comment = comment or line.startswith("<!--")
        if not (fenced or comment or line.startswith("    ") or line.lstrip().startswith("|")):
            yield number, line
        if "-->" in line:
            comment = False


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    found: set[str] = set()
    for _, line in _prose(page.read_text("utf-8")):
        heading = re.match(r"#+ (.*)", line)
        if heading:
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower().replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
            found |= {slug, re.sub(r"-+", "-", slug)}
        found |= set(re.findall(r'<a (?:id|name)="([^"]+)"', line))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    text = "\n".join(line for _, line in _prose(page.read_text("utf-8")))
    text += "\n".join(line for line in page.read_text("utf-8").splitlines() if line.startswith("|"))
    for target in (first or second for first, second in _LINK.findall(text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor and place.suffix == ".md":
            assert anchor in _anchors(place), target


@pytest.mark.parametrize("name", NAMES)
def test_every_named_path_exists(name: str) -> None:
    text = "\n".join(line for _, line in _prose((ROOT / name).read_text("utf-8")))
    for path in _PATH.findall(text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_wrapped(name: str) -> None:
    # A line may be longer if it is one word, such as an address.
    long = [
        number
        for number, line in _prose((ROOT / name).read_text("utf-8"))
        if len(line) > WIDTH and len(line.split(maxsplit=2)) > 2
    ]
    assert not long, f"{name}: lines {long} have more than {WIDTH} columns"


def _navigation() -> list[Any]:
    # The configuration has tags only where mkdocs reads Python names; there are none.
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    return docs_site.navigation(nav, DOCS)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(docs_site.pages_of(_navigation()))
    assert len(listed) == len(set(listed))
    here = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(listed) == here | set(docs_site.ROOT_PAGES.values())
    assert all((ROOT / page).is_file() for page in docs_site.ROOT_PAGES)


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "design/index.md").read_text("utf-8")
    records = {path.name for path in (DOCS / "design").glob("adr-*.md")}
    assert set(re.findall(r"\((adr-[^)]+)\)", index)) == records


def test_diagrams_are_rendered() -> None:
    sources = render_diagrams.sources()
    assert set(sources) == {path.stem for path in render_diagrams.DIAGRAMS.glob("*.svg")}
    for name, source in sources.items():
        svg = (render_diagrams.DIAGRAMS / f"{name}.svg").read_text("utf-8")
        assert f"{render_diagrams.title_of(source)}</title>" in svg
        assert "<script" not in svg


def test_tables_from_code_are_current() -> None:
    # In a process of its own: other tests register kinds.
    script = [sys.executable, str(ROOT / "scripts/docs_tables.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python scripts/docs_tables.py\n{done.stdout}{done.stderr}"


def test_a_table_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="table must be one of"):
        docs_tables.written("<!-- table: nonsense -->\n<!-- end -->\n")
