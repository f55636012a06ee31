"""Two understanding tasks with private sentences in public templates.

MRPC: Dolan and Brockett, 2005. Sentence polarity: Pang and Lee, 2005 (film reviews, arXiv
cs/0506075).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from del_core.lm.text import TextError

__all__ = ["Example", "Segment", "Task", "read_mrpc", "read_sentence_polarity"]


@dataclass(frozen=True)
class Segment:
    """Part of a prompt. A view protects private parts; fixed words of the template are public."""

    text: str
    private: bool


@dataclass(frozen=True)
class Example:
    """A prompt whose next word is the label, 0 or 1."""

    segments: tuple[Segment, ...]
    label: int


@dataclass(frozen=True)
class Task:
    """Three disjoint parts of a task.

    Attributes:
        verbalizers: words whose logits are read for label 0 and label 1; their first tokens differ.
    """

    name: str
    verbalizers: tuple[str, str]
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]

    @property
    def majority(self) -> float:
        """Accuracy on the test part of always choosing the more frequent label."""
        share = float(np.mean([example.label for example in self.test]))
        return max(share, 1.0 - share)


def _rows(path: Path, columns: int) -> list[list[str]]:
    """Read the rows below the header. Tabs in quoted fields of the public files stand for commas.

    Raises:
        TextError: the file is missing or malformed; the message names file and row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t"))[1:]
    except FileNotFoundError:
        raise TextError(f"task file {path}: not found") from None
    except UnicodeDecodeError as error:
        raise TextError(f"task file {path}: not UTF-8 at byte {error.start}") from None
    for number, row in enumerate(rows, start=2):
        if len(row) != columns or row[0] not in ("0", "1"):
            raise TextError(
                f"task file {path}, row {number}: {len(row)} columns, the first {row[:1]}; "
                f"{columns} columns are needed, of which the first is the label 0 or 1"
            )
    return [[field.replace("\t", ",") for field in row] for row in rows]


def _validated(examples: list[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Split ``count`` validation examples off, by a seeded permutation."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[i] for i in order[count:]], [examples[i] for i in order[:count]]


def read_mrpc(train: Path, test: Path, validation: int = 400, seed: int = 0) -> Task:
    """Read MRPC: do two sentences mean the same? Label 1 is yes.

    Raises:
        TextError: a file is missing or does not have MRPC's five columns.
    """

    def example(row: list[str]) -> Example:
        parts = (
            Segment(row[3], True),
            Segment(" In other words :", False),
            Segment(" " + row[4], True),
            Segment(" Is it the same ? The answer is", False),
        )
        return Example(parts, int(row[0]))

    kept, cut = _validated([example(row) for row in _rows(train, 5)], validation, seed)
    return Task("MRPC", (" no", " yes"), kept, cut, [example(row) for row in _rows(test, 5)])


def read_sentence_polarity(train: Path, test: Path, validation: int = 400, seed: int = 0) -> Task:
    """Read sentence polarity: does a sentence praise a film? Label 1 is yes.

    Raises:
        TextError: a file is missing or does not have two columns.
    """

    def example(row: list[str]) -> Example:
        return Example((Segment(row[1], True), Segment(" this film is the", False)), int(row[0]))

    kept, cut = _validated([example(row) for row in _rows(train, 2)], validation, seed)
    return Task("sentence polarity", (" worst", " best"), kept, cut, [example(row) for row in _rows(test, 2)])
