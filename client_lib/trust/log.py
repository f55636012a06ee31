"""A transparency log of bundles: an append-only file with the Merkle hashes of RFC 6962.

Every line is one entry in canonical JSON. With SHA-256, a leaf is H(0x00, line) without its line
feed, and a node H(0x01, left, right). A head is the size and the root. Two clients that compare
heads of one log find out whether they were shown the same bundles: a head that is no beginning of
the other has no consistency proof.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client_lib._validation import invalid
from del_core.bundle import canonical_json

_EMPTY = hashlib.sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_hash(leaves: Sequence[bytes]) -> bytes:
    """Return the root over the hashes of leaves."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else _EMPTY
    middle = _split(len(leaves))
    return node_hash(root_hash(leaves[:middle]), root_hash(leaves[middle:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Return the audit path of a leaf (section 2.1.1)."""
    if len(leaves) <= 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*inclusion_proof(leaves[:middle], index), root_hash(leaves[middle:])]
    return [*inclusion_proof(leaves[middle:], index - middle), root_hash(leaves[:middle])]


def consistency_proof(leaves: Sequence[bytes], size: int) -> list[bytes]:
    """Return the proof that the first ``size`` leaves are a beginning of all (section 2.1.2)."""
    return _subproof(leaves, size, is_whole=True) if 0 < size < len(leaves) else []


def _subproof(leaves: Sequence[bytes], size: int, *, is_whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if is_whole else [root_hash(leaves)]
    middle = _split(len(leaves))
    if size <= middle:
        return [*_subproof(leaves[:middle], size, is_whole=is_whole), root_hash(leaves[middle:])]
    return [*_subproof(leaves[middle:], size - middle, is_whole=False), root_hash(leaves[:middle])]


def _split(size: int) -> int:
    """Return the largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def is_included(entry: bytes, index: int, head: Head, proof: Sequence[bytes]) -> bool:
    """Return whether a proof shows an entry at an index below a head (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < head.size:
        return False
    position, last, found = index, head.size - 1, leaf_hash(entry)
    for step in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            found = node_hash(step, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, step)
        position, last = position >> 1, last >> 1
    return last == 0 and found == head.root


def is_consistent(old: Head, new: Head, proof: Sequence[bytes]) -> bool:
    """Return whether a proof shows that ``old`` is a beginning of ``new`` (RFC 9162, 2.1.4.2)."""
    if old.size == new.size or old.size == 0:
        return not proof and (old.root == new.root if old.size == new.size else old.root == _EMPTY)
    if old.size > new.size or not proof:
        return False
    steps = list(proof) if old.size & (old.size - 1) else [old.root, *proof]
    position, last = old.size - 1, new.size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            first, second = node_hash(step, first), node_hash(step, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = node_hash(second, step)
        position, last = position >> 1, last >> 1
    return last == 0 and first == old.root and second == new.root


@dataclass(frozen=True, slots=True)
class Head:
    """The size of a log and its root."""

    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.size}:{self.root.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Return the head in a text ``SIZE:ROOT``. Raises ``InvalidRequestError``."""
        size, _, root = text.partition(":")
        if not (size.isascii() and size.isdigit() and len(size) < 16 and len(root) == 64):
            raise invalid("head", "SIZE:ROOT with 64 hexadecimal digits", "something else")
        try:
            return cls(int(size), bytes.fromhex(root))
        except ValueError:
            raise invalid("head", "SIZE:ROOT with 64 hexadecimal digits", "something else") from None


class TransparencyLog:
    """A log in one file. Raises ``InvalidRequestError`` for a file that is no log."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)

    def entries(self) -> list[bytes]:
        """Return all entries."""
        data = self.path.read_bytes() if self.path.exists() else b""
        lines = data.split(b"\n")
        if lines.pop():
            raise invalid("log", "complete lines", f"an incomplete last line in {self.path}")
        if any(not line.startswith(b"{") or not line.endswith(b"}") for line in lines):
            raise invalid("log", "lines of JSON objects", f"another line in {self.path}")
        return lines

    def leaves(self) -> list[bytes]:
        """Return the hashes of all entries."""
        return [leaf_hash(entry) for entry in self.entries()]

    def head(self, size: int | None = None) -> Head:
        """Return the head over the first ``size`` entries, or over all."""
        leaves = self.leaves()
        if size is not None and size > len(leaves):
            raise invalid("head", f"of at most {len(leaves)} entries", str(size))
        kept = leaves[:size]
        return Head(len(kept), root_hash(kept))

    def append(self, entry: Mapping[str, object]) -> Head:
        """Append an entry durably, and return the new head."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            self.entries()  # a damaged log is not continued
            os.write(handle, canonical_json(dict(entry)) + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        return self.head()
