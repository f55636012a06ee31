"""The log: known roots, an independent implementation, and forged proofs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_lib import InvalidRequestError
from client_lib.trust.log import (
    Head,
    TransparencyLog,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    root_hash,
)

# The leaves and roots with which implementations of RFC 6962 are commonly tested.
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def stacked(entries: list[bytes]) -> bytes:
    """The root by another algorithm: a stack of complete subtrees, as of a streaming hash."""
    stack: list[tuple[int, bytes]] = []
    for entry in entries:
        size, found = 1, hashlib.sha256(b"\0" + entry).digest()
        while stack and stack[-1][0] == size:
            found = hashlib.sha256(b"\1" + stack.pop()[1] + found).digest()
            size *= 2
        stack.append((size, found))
    if not stack:
        return hashlib.sha256().digest()
    found = stack.pop()[1]
    while stack:
        found = hashlib.sha256(b"\1" + stack.pop()[1] + found).digest()
    return found


@pytest.mark.parametrize(("size", "root"), ROOTS.items())
def test_known_roots(size: int, root: str) -> None:
    assert root_hash([leaf_hash(entry) for entry in ENTRIES[:size]]).hex() == root


@given(st.lists(st.binary(max_size=8), max_size=40), st.data())
def test_proofs_hold_and_forged_ones_do_not(entries: list[bytes], data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries]
    head = Head(len(entries), root_hash(leaves))
    assert head.root == stacked(entries)
    size = data.draw(st.integers(0, len(entries)))
    old = Head(size, stacked(entries[:size]))
    proof = consistency_proof(leaves, size)
    assert is_consistent(old, head, proof)
    other = Head(size, hashlib.sha256(old.root).digest())
    assert not is_consistent(other, head, proof)
    assert not is_consistent(old, head, [*proof, b"x" * 32])
    if proof:
        assert not is_consistent(old, head, proof[:-1])
    if entries:
        index = data.draw(st.integers(0, len(entries) - 1))
        path = inclusion_proof(leaves, index)
        assert is_included(entries[index], index, head, path)
        assert not is_included(entries[index] + b"x", index, head, path)
        assert not is_included(entries[index], len(entries), head, path)
        assert not is_included(entries[index], index, head, [*path, b"x" * 32])
        if path:
            assert not is_included(entries[index], index, head, path[:-1])


def test_a_log_only_grows(tmp_path: Path) -> None:
    log = TransparencyLog(tmp_path / "log")
    heads = [log.append({"fingerprint": f"{number}"}) for number in range(5)]
    assert [head.size for head in heads] == [1, 2, 3, 4, 5]
    for old in heads:
        assert log.head(old.size) == old == Head.parse(str(old))
        assert is_consistent(old, heads[-1], consistency_proof(log.leaves(), old.size))
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes().replace(b'"1"', b'"9"'))
    assert log.head(1) == heads[0]
    assert log.head(2) != heads[1]


@pytest.mark.parametrize("content", [b"{}", b"{}\nx\n", b"\n"])
def test_a_damaged_log_is_not_continued(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(InvalidRequestError, match="log must be"):
        TransparencyLog(tmp_path / "log").append({"fingerprint": "1"})
    assert (tmp_path / "log").read_bytes() == content


@pytest.mark.parametrize("text", ["", "1", "1:ab", "x:" + "0" * 64, "-1:" + "0" * 64, "1:" + "z" * 64])
def test_malformed_heads_are_named(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="head must be"):
        Head.parse(text)
