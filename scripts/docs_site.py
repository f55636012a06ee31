"""Hooks of mkdocs: pages from outside docs/, links that leave it, diagrams, navigation.

Links between Markdown files follow the repository, so that they also work there. For the site, the
pages in :data:`ROOT_PAGES` are added, links to and from them are rewritten, links to files that are
not part of the site become plain text, and mermaid sources become images
(``scripts/render_diagrams.py``).
"""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.render_diagrams import BLOCK, DIAGRAMS, name_of, title_of  # noqa: E402

ROOT_PAGES = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "clients/typescript/README.md": "guides/typescript.md",
}
# Files for people who read the repository; the site has the same content elsewhere.
_REPOSITORY_PAGES = {"README.md": "index.md"}

NARROW = 520
"""Largest width of a diagram, in pixels, that a phone can show as a whole."""

# Code comes first, so that a link inside of it is left alone.
_CODE_OR_LINK = re.compile(
    r"^```.*?^```$|`[^`\n]+`|(?<!!)\[(?P<text>(?:`[^`]*`|[^\]`])*)\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Expand the names ``folder/*`` in the navigation."""
    config.nav = navigation(config.nav or [], Path(config.docs_dir))
    return config


def navigation(nav: list[Any], docs: Path) -> list[Any]:
    """Return a navigation tree with the names ``folder/*`` expanded."""
    return _expanded(nav, docs, set(pages_of(nav)))


def pages_of(nav: list[Any]) -> Iterator[str]:
    """Yield the page names in a navigation tree."""
    for item in nav:
        if isinstance(item, dict):
            for value in item.values():
                yield from pages_of(value if isinstance(value, list) else [value])
        else:
            yield item


def _expanded(items: list[Any], docs: Path, listed: set[str]) -> list[Any]:
    """Replace each ``folder/*`` by the pages of the folder that are not in ``listed``."""
    found: list[Any] = []
    for item in items:
        if isinstance(item, dict):
            found.append(
                {
                    title: _expanded(value, docs, listed) if isinstance(value, list) else value
                    for title, value in item.items()
                }
            )
        elif item.endswith("/*"):
            names = sorted(path.relative_to(docs).as_posix() for path in (docs / item[:-2]).glob("*.md"))
            found += [name for name in names if name not in listed]
        else:
            found.append(item)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    from mkdocs.structure.files import File

    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace diagrams by images and rewrite links that leave docs/."""
    here = page.file.src_uri
    sources = {site: source for source, site in ROOT_PAGES.items()}
    in_repository = sources.get(here, f"docs/{here}")

    def image(match: re.Match[str]) -> str:
        name = name_of(match[1])
        if not (DIAGRAMS / f"{name}.svg").is_file():
            from mkdocs.exceptions import PluginError

            raise PluginError(f"{in_repository} has a diagram that is not rendered; run scripts/render_diagrams.py")
        target = posixpath.relpath(f"assets/diagrams/{name}.svg", posixpath.dirname(here) or ".")
        width = int(re.search(r'width="(\d+)"', (DIAGRAMS / f"{name}.svg").read_text("utf-8"))[1])  # type: ignore[index]
        return f"![{title_of(match[1])}]({target}){{ .diagram {'.wide ' if width > NARROW else ''}}}"

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if target is None or "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, hash_sign, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), path))
        site = ROOT_PAGES.get(path) or _REPOSITORY_PAGES.get(path) or path.removeprefix("docs/")
        if site == path:  # neither below docs/ nor one of the added pages
            return match["text"]
        if files.get_file_from_path(site) is None:
            return match[0]  # mkdocs warns
        return f"[{match['text']}]({posixpath.relpath(site, posixpath.dirname(here) or '.')}{hash_sign}{anchor})"

    return _CODE_OR_LINK.sub(link, BLOCK.sub(image, markdown))
