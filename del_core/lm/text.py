"""Text files as token windows: splitting, tokenization and sampling without hidden state.

Every batch is a pure function of ``(seed, step)``, so that a resumed run sees the batches of an
uninterrupted one, and no generator state has to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from del_core.errors import DelError

HELD_OUT = 0.06
"""Share of a text that is held out: one half for validation, one for tests."""


class TextError(DelError, ValueError):
    """A text file is missing, is not UTF-8 or is too short."""


def read_texts(paths: Sequence[str | Path]) -> list[str]:
    """Read UTF-8 text files; TextError names a file that is missing, empty or not UTF-8."""
    texts = []
    for path in map(Path, paths):
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise TextError(f"text file must exist, got {path}") from None
        except IsADirectoryError:
            raise TextError(f"text file must be a file, got the directory {path}") from None
        except UnicodeDecodeError as error:
            raise TextError(f"text file must be UTF-8, got other bytes from {error.start} on in {path}") from None
        if not text.strip():
            raise TextError(f"text file must not be empty, got {path}")
        texts.append(text)
    return texts


@dataclass(frozen=True)
class TextSplits:
    """Disjoint contiguous parts of each file, for training, calibration and reports."""

    train: list[str]
    validation: list[str]
    test: list[str]


def split_text(texts: Sequence[str], held_out: float = HELD_OUT) -> TextSplits:
    """Cut the last ``held_out`` share off every text and halve it into validation and test.

    Cuts fall on line ends, or between words of a long line. Contiguous parts, not shuffled lines,
    keep near-duplicate sentences of one page out of both sides.
    """
    if not 0.0 < held_out < 0.5:
        raise TextError(f"held_out must be between 0 and 0.5, got {held_out}")
    parts: tuple[list[str], list[str], list[str]] = ([], [], [])
    for text in texts:
        first = _cut(text, 0, int(len(text) * (1 - held_out)))
        cuts = [first, _cut(text, first, int(len(text) * (1 - held_out / 2)))]
        for part, piece in zip(parts, (text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]), strict=True):
            if piece.strip():
                part.append(piece)
    return TextSplits(*parts)


def _cut(text: str, start: int, end: int) -> int:
    """Return where the last line begins between two places, or else the last word, or ``end``."""
    return text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], separator: int | None = None) -> torch.Tensor:
    """Return token ids (int64) of all texts in one dimension, each followed by ``separator``."""
    ids: list[int] = []
    for text in texts:
        ids.extend(tokenizer.encode(text, add_special_tokens=False).ids)
        if separator is not None:
            ids.append(separator)
    return torch.tensor(ids, dtype=torch.int64)


class TokenWindows:
    """Windows of ``length`` tokens, each once an epoch, randomly shifted and shuffled."""

    def __init__(self, tokens: torch.Tensor, length: int, seed: int) -> None:
        if tokens.numel() < 2 * length:
            raise TextError(f"text must have at least {2 * length} tokens, got {tokens.numel()}")
        self.tokens, self.length, self.seed = tokens, length, seed
        # One window less than fits, so that every offset below ``length`` is possible.
        self.per_epoch = tokens.numel() // length - 1
        self._epoch, self._order, self._offset = -1, torch.empty(0), 0

    def _window(self, index: int) -> torch.Tensor:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.per_epoch, generator=generator)
            self._offset = int(torch.randint(self.length, (), generator=generator))
            self._epoch = epoch
        start = self._offset + int(self._order[position]) * self.length
        return self.tokens[start : start + self.length]

    def batch(self, step: int, size: int) -> torch.Tensor:
        """Return token ids (size, length) of batch number ``step``."""
        return torch.stack([self._window(step * size + row) for row in range(size)])

    def evenly(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut the text into windows (available, length); return them and the picks of ``first``."""
        available = self.tokens.numel() // self.length
        picks = torch.linspace(0, available - 1, min(count, available)).long()
        return self.tokens[: available * self.length].view(available, self.length), picks

    def first(self, count: int) -> torch.Tensor:
        """Return ``count`` evenly spaced windows (count, length), in text order, for evaluation."""
        windows, picks = self.evenly(count)
        return windows[picks]
