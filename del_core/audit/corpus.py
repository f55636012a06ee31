"""The text of an audit: held out from training, divided between attacker and measurement.

Of each section of the text 70 % trains attacks, 10 % tunes them, and 20 % is attacked. An attacker
who has read part of the same document is the stronger one. The attacker may have more text, such as
the model's training text; passages of it that occur in the other two parts are taken out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from del_core.lm.text import TextError

KINDS = ("stop words", "names and numbers", "rare words", "other words", "other text")
PASSAGE = 8  # tokens of a run that two texts hardly share by chance
MIN_PROMPTS = 16  # with fewer prompts to measure on, intervals are too wide to be useful

_Item = TypeVar("_Item", bound=np.generic)
_SECTIONS = 10
_SHARES = (0.7, 0.8)
_RARE = 2  # a word that the attacker's text has at most this often is rare
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE_END = frozenset(".!?:;\"'\u201c\u201d\u2018\u2019)-\u2014")
_STOP_WORDS_TEXT = """
a about after again all am an and any are as at be because been before being but by can could did do does down for
from had has have he her here him his how i if in into is it its just like me more most my no nor not now of off on
once one only or other our out over said she should so some such than that the their them then there these they
this those through to too under until up upon us very was we were what when where which while who whom why will
with would you your thou thee thy shall may must might
"""
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())


@dataclass(frozen=True, eq=False)
class Corpus:
    """Token ids of the three parts.

    Attributes:
        sha256, tokens: checksum and number of tokens of the whole text.
        train: the attacker's tokens (tokens,): of this text, and before them of the given text.
        attacker: the text that the attacker has besides.
        validation: prompts (windows, length) on which attacks are tuned.
        prompts: prompts (count, length) on which attacks are measured.
        kinds: index in ``KINDS`` of every token of ``prompts``.
    """

    sha256: str
    tokens: int
    train: npt.NDArray[np.int64] = field(repr=False)
    validation: npt.NDArray[np.int64] = field(repr=False)
    prompts: npt.NDArray[np.int64] = field(repr=False)
    kinds: npt.NDArray[np.uint8] = field(repr=False)
    attacker: AttackerText | None = None


@dataclass(frozen=True)
class AttackerText:
    """Identity of the text that the attacker has besides the held-out one.

    Attributes:
        sha256, tokens: checksum of all files, and tokens that the attacker trains on.
        removed: tokens of passages that the held-out text has, too.
    """

    sha256: str
    tokens: int
    removed: int


def make_corpus(
    text: str,
    tokenizer: Tokenizer,
    *,
    prompts: int,
    length: int,
    vocabulary_size: int,
    attacker_texts: Sequence[str] = (),
) -> Corpus:
    """Divide ``text`` and take up to ``prompts`` evenly spaced prompts of ``length`` tokens.

    Raises:
        TextError: the text has too few tokens, or token ids beyond the vocabulary.
    """
    parts = ["\n".join(pieces) for pieces in zip(*(_cut(section) for section in _sections(text)), strict=True)]
    encoded = [tokenizer.encode(part, add_special_tokens=False) for part in parts]
    ids = [np.asarray(encoding.ids, np.int64) for encoding in encoded]
    total = sum(map(len, ids))
    windows = [len(part) // length for part in ids]
    if windows[2] < MIN_PROMPTS or windows[1] < MIN_PROMPTS // 2 or windows[0] < MIN_PROMPTS:
        needed = int(1.1 * MIN_PROMPTS * length / (1 - _SHARES[1]))
        raise TextError(f"text: {total} tokens are too few to measure on; about {needed} are needed")
    if max(int(part.max()) for part in ids) >= vocabulary_size:
        raise TextError(f"text: the tokenizer makes ids beyond the bundle's vocabulary of {vocabulary_size} tokens")
    train, attacker = ids[0], None
    if attacker_texts:
        own = [np.asarray(tokenizer.encode(one, add_special_tokens=False).ids, np.int64) for one in attacker_texts]
        given = np.concatenate(own)
        if len(given) and int(given.max()) >= vocabulary_size:
            raise TextError(f"attacker text: makes ids beyond the bundle's vocabulary of {vocabulary_size} tokens")
        kept = given[~shared_passages(given, np.concatenate(ids[1:]))]
        checksum = hashlib.sha256("\0".join(attacker_texts).encode()).hexdigest()
        attacker = AttackerText(checksum, len(kept), len(given) - len(kept))
        train = np.concatenate([kept, train])
    frequent = Counter(word.group().lower() for part in parts[:2] for word in _WORD.finditer(part))
    kinds = _kinds(parts[2], encoded[2].offsets, frequent)
    return Corpus(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        tokens=total,
        train=train,
        validation=_windows(ids[1], length, windows[1]),
        prompts=_windows(ids[2], length, prompts),
        kinds=_windows(kinds, length, prompts),
        attacker=attacker,
    )


def shared_passages(tokens: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which of ``tokens`` are in a run of ``PASSAGE`` that ``others`` has, too."""
    marked = np.zeros(len(tokens), np.bool_)
    found = np.flatnonzero(np.isin(_runs(tokens), _runs(others)))
    for offset in range(PASSAGE):
        marked[found + offset] = True
    return marked


def _runs(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return a hash of every run of ``PASSAGE`` tokens; equal runs have equal hashes."""
    starts = max(0, len(tokens) - PASSAGE + 1)
    found = np.zeros(starts, np.uint64)
    for offset in range(PASSAGE):
        found = (
            found * np.uint64(0x9E3779B97F4A7C15) + tokens[offset : offset + starts].astype(np.uint64) + np.uint64(1)
        )
    return found


def _sections(text: str) -> list[str]:
    cuts = [_line_end(text, len(text) * number // _SECTIONS) for number in range(1, _SECTIONS)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def _cut(section: str) -> tuple[str, str, str]:
    first, second = (_line_end(section, int(len(section) * share)) for share in _SHARES)
    return section[:first], section[first:second], section[second:]


def _line_end(text: str, cut: int) -> int:
    """Return the last line end before ``cut``, if it is near; else ``cut``."""
    found = text.rfind("\n", max(0, cut - 400), cut) + 1
    return found or cut


def _windows(tokens: npt.NDArray[_Item], length: int, count: int) -> npt.NDArray[_Item]:
    available = len(tokens) // length
    picks = np.linspace(0, available - 1, min(count, available)).astype(np.int64)
    return tokens[: available * length].reshape(available, length)[picks]


def _kinds(text: str, offsets: Sequence[tuple[int, int]], frequent: Counter[str]) -> npt.NDArray[np.uint8]:
    """Return the kind of every token, from the word that its characters belong to."""
    other = KINDS.index("other text")
    of_character = np.full(len(text), other, np.uint8)
    for word in _WORD.finditer(text):
        of_character[word.start() : word.end()] = KINDS.index(_kind(text, word, frequent))
    result = np.full(len(offsets), other, np.uint8)
    for index, (start, end) in enumerate(offsets):
        inside = of_character[start:end]
        named = inside[inside != other]
        if len(named):
            result[index] = named[0]
    return result


def _kind(text: str, word: re.Match[str], frequent: Counter[str]) -> str:
    found = word.group()
    if any(character.isdigit() for character in found):
        return "names and numbers"
    if found.lower() in _STOP_WORDS:
        return "stop words"
    before = text[max(0, word.start() - 8) : word.start()].rstrip()
    # A capital letter at the beginning of a sentence does not mark a name.
    if found[0].isupper() and len(found) > 1 and before and before[-1] not in _SENTENCE_END:
        return "names and numbers"
    return "rare words" if frequent[found.lower()] <= _RARE else "other words"


def rouge_l(reference: str, candidate: str) -> float:
    """Return the ROUGE-L F1 of two texts over lower-case words (Lin 2004); 0 if either has none."""
    a = [word.group().lower() for word in _WORD.finditer(reference)]
    b = [word.group().lower() for word in _WORD.finditer(candidate)]
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)
    for left in a:
        diagonal = 0
        for index, right in enumerate(b, 1):
            diagonal, row[index] = row[index], diagonal + 1 if left == right else max(row[index], row[index - 1])
    return 2.0 * row[-1] / (len(a) + len(b))
