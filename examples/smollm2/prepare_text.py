"""Makes the training text of the SmolLM2 bundle out of public-domain books and Wikipedia articles.

Usage: python prepare_text.py DIRECTORY OUTPUT_DIRECTORY

DIRECTORY holds the books as lm/NAME.txt and WikiText-2's validation part as
eval/wikitext2.valid.txt. OUTPUT_DIRECTORY gets one file for each source, cut to one length so that
no source dominates, and held_out.txt: the ends of the books, which no training reads.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo_model"))

from prepare_text import NAMES, unwrap

TRAINED = 330_000  # characters of a source
HELD_OUT = 60_000  # characters at the end of a book
_SHARE_HELD_OUT = 0.2  # at most, of a short book
# WikiText-2 separates punctuation by spaces and replaces rare words by <unk>.
_DETOKENIZE = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([,.;:!?)\]%]|'s\b|n't\b|'re\b|'ve\b|'ll\b|'d\b|'m\b)"), r"\1"),
    (re.compile(r"([(\[$]) "), r"\1"),
    (re.compile(r'" ([^"\n]*?) "'), r'"\1"'),
)


def wikipedia(text: str) -> str:
    """Returns the paragraphs of WikiText as plain text, without sentences of unknown words."""
    kept = []
    for line in text.splitlines():
        line = line.strip()
        if len(line) < 80 or line.startswith("="):
            continue
        sentences = [one for one in re.split(r"(?<= [.!?]) (?=[A-Z\"])", line) if "<unk>" not in one]
        line = " ".join(sentences)
        for pattern, plain in _DETOKENIZE:
            line = pattern.sub(plain, line)
        if len(line) >= 80:
            kept.append(line)
    return "\n\n".join(kept) + "\n"


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    target.mkdir(parents=True, exist_ok=True)
    ends = []
    for name in NAMES:
        text = unwrap((source / "lm" / f"{name}.txt").read_text(encoding="utf-8"))
        cut = text.rfind("\n", 0, max(len(text) - HELD_OUT, int(len(text) * (1 - _SHARE_HELD_OUT)))) + 1
        end = text.rfind("\n", 0, min(cut, TRAINED)) + 1
        (target / f"{name}.txt").write_text(text[:end], encoding="utf-8")
        ends.append(text[cut:])
    (target / "held_out.txt").write_text("\n".join(ends), encoding="utf-8")
    articles = wikipedia((source / "eval" / "wikitext2.valid.txt").read_text(encoding="utf-8"))
    (target / "wikipedia.txt").write_text(articles[: articles.rfind("\n", 0, TRAINED) + 1], encoding="utf-8")


if __name__ == "__main__":
    main()
