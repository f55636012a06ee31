"""Check that a release tag, the version in pyproject.toml and the changelog agree.

Usage: check_release.py TAG. Exits 1 and prints the reason if the tag is not ``v`` followed by the
version, if the version is a development version, or if CHANGELOG.md has no dated section for it
with at least one entry.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(tag: str, version: str, changelog: str) -> list[str]:
    """Return one sentence for each reason not to release; empty if there is none."""
    found = []
    if tag != f"v{version}":
        found.append(f"tag must be v{version}, the version in pyproject.toml, got {tag}")
    if not re.fullmatch(r"\d+\.\d+\.\d+(?:rc\d+)?", version):
        found.append(f"version must be X.Y.Z or X.Y.ZrcN, got {version}")
    heading = rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$"
    section = re.search(rf"{heading}(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if section is None:
        found.append(f'CHANGELOG.md must have a section "## {version} - YYYY-MM-DD"')
    elif not re.search(r"^- \S", section[1], re.MULTILINE):
        found.append(f"the section of CHANGELOG.md for {version} must have an entry")
    return found


def main() -> int:
    """Print the problems; their number decides the exit status."""
    if len(sys.argv) != 2:
        print("usage: check_release.py TAG", file=sys.stderr)
        return 2
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    found = problems(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text("utf-8"))
    print("\n".join(found) or f"release {version}: tag, version and changelog agree")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
