"""Makes the demo model's training text out of public-domain books and speeches.

Usage: python prepare_text.py DIRECTORY_WITH_TEXT_FILES OUTPUT_DIRECTORY

Joins hard-wrapped lines back into paragraphs (verse keeps its lines) and turns typographic quotes
into plain ones, so that a small model spends its capacity on words.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

NAMES = (
    "state_union",
    "inaugural",
    "grimm",
    "wizard_of_oz",
    "moby_dick",
    "pride_and_prejudice",
    "alice",
    "shakespeare",
)
_PLAIN = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u00a0": " "})
_WRAPPED = 58  # characters; hard-wrapped prose has lines longer than this, verse rarely does


def unwrap(text: str) -> str:
    """Joins the lines of hard-wrapped paragraphs."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n+", text.translate(_PLAIN).replace("\r", "")):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        if lines:
            longest = max(map(len, lines))
            paragraphs.append((" " if _WRAPPED <= longest < 90 else "\n").join(lines))
    return "\n\n".join(paragraphs) + "\n"


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    target.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (target / f"{name}.txt").write_text(
            unwrap((source / f"{name}.txt").read_text(encoding="utf-8")), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
