"""Render the mermaid diagrams of the Markdown files to SVG: the site then needs no script for them.

Each diagram is named after the SHA-256 of its source, in docs/assets/diagrams. Diagrams that are up
to date are kept; those that no page has are deleted. Requires npm, for the mermaid package, and
Chromium.

Usage: render_diagrams.py [CHROMIUM]
"""

from __future__ import annotations

import hashlib
import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIAGRAMS = ROOT / "docs" / "assets" / "diagrams"
MERMAID = "mermaid@11.16.0"
BLOCK = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Legible on a light and on a dark page: nodes have a background of their own, lines a middle gray.
PAGE = """<!doctype html><meta charset="utf-8"><body><pre id="source">{source}</pre><div id="out"></div>
<script src="{script}"></script><script>
mermaid.initialize({{startOnLoad: false, theme: "base", htmlLabels: false,
  flowchart: {{htmlLabels: false, nodeSpacing: 30, rankSpacing: 28, subGraphTitleMargin: {{top: 6, bottom: 16}}}},
  themeVariables: {{fontFamily: "system-ui, sans-serif", fontSize: "15px", primaryColor: "#e3ecf8",
    primaryTextColor: "#16202e", primaryBorderColor: "#5b7fa8", lineColor: "#7d8896",
    edgeLabelBackground: "#eceff3", tertiaryColor: "#eceff3"}}}});
mermaid.render("{name}", document.getElementById("source").textContent).then(
  (done) => {{ document.body.innerHTML = "<main>" + done.svg + "</main>"; }});
</script></body>"""


def diagrams(text: str) -> list[str]:
    """Return the sources of the mermaid blocks in a Markdown text."""
    return BLOCK.findall(text)


def name_of(source: str) -> str:
    """Return the file name, without its suffix, of a rendered diagram."""
    return "d" + hashlib.sha256(source.encode()).hexdigest()[:12]


def title_of(source: str) -> str:
    """Return the title that the diagram gives itself for readers who do not see it.

    Raises:
        ValueError: the source has no line ``accTitle: ...``.
    """
    found = re.search(r"^\s*accTitle:\s*(\S.*)$", source, re.MULTILINE)
    if found is None:
        raise ValueError("diagram must have a line accTitle: ..., got none")
    return found[1].strip()


def sources() -> dict[str, str]:
    """Return all diagrams of the project by name."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return {name_of(source): source for page in pages for source in diagrams(page.read_text("utf-8"))}


def render(name: str, source: str, script: Path, chromium: str) -> str:
    """Return a diagram as SVG."""
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        page.write_text(PAGE.format(source=html.escape(source), script=script.as_uri(), name=name), "utf-8")
        dom = subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
                *("--disable-component-update", "--disable-sync", "--no-first-run", "--virtual-time-budget=10000"),
                f"--user-data-dir={scratch}/profile",
                "--dump-dom",
                page.as_uri(),
            ],
            check=True,
            capture_output=True,
            encoding="utf-8",
        ).stdout
    found = re.search(r"<main>(<svg.*</svg>)</main>", dom, re.DOTALL)
    if found is None:
        raise RuntimeError(f"mermaid rendered nothing for the diagram {name}")
    # <br> needs an end tag in SVG, which is XML. Without a size, an image would fill the page.
    width, height = re.findall(r"[\d.]+", re.search(r'viewBox="([^"]*)"', found[1])[1])[-2:]  # type: ignore[index]
    svg = re.sub(r"<br\s*>", "<br/>", found[1])
    svg = re.sub(r'^(<svg[^>]*?) width="100%"', r"\1", svg)
    return svg.replace("<svg ", f'<svg width="{float(width):.0f}" height="{float(height):.0f}" ', 1) + "\n"


def main() -> int:
    """Render what is missing and delete what is stale."""
    chromium = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium") or shutil.which("google-chrome")
    wanted = sources()
    DIAGRAMS.mkdir(parents=True, exist_ok=True)
    for path in DIAGRAMS.glob("*.svg"):
        if path.stem not in wanted:
            path.unlink()
    missing = {name: source for name, source in wanted.items() if not (DIAGRAMS / f"{name}.svg").is_file()}
    if missing:
        if chromium is None:
            print("render_diagrams: no Chromium found; name its program as the argument", file=sys.stderr)
            return 1
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(["npm", "pack", "--silent", MERMAID], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(scratch).glob("*.tgz")
            shutil.unpack_archive(archive, scratch)
            script = Path(scratch) / "package" / "dist" / "mermaid.min.js"
            for name, source in missing.items():
                (DIAGRAMS / f"{name}.svg").write_text(render(name, source, script, chromium), "utf-8")
    print(f"render_diagrams: {len(missing)} rendered, {len(wanted) - len(missing)} up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
