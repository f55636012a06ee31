"""Records and their comparison, and the stores that keep them."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_lib import BundleRejectedError, TrustUnavailableError
from client_lib.trust import FileTrustStore, MemoryTrustStore, Trust, TrustRecord, TrustStore, default_trust_file
from client_lib.trust.trust import Offer
from del_core.bundle import ClientBundle, Manifest
from tests.support.bundle import DIM

URL = "https://del.example.com/small"
FIRST = 1 << 29


def noisy(bundle: ClientBundle, *, bits: int = 4, ratio: int = FIRST, max_level: int = 32767) -> Manifest:
    """Return the bundle's manifest with other noise under the same names."""
    changed = tuple(replace(variant, bits=bits, ratio_numerator=ratio) for variant in bundle.manifest.variants)
    return replace(bundle.manifest, variants=changed, max_level=max_level).sealed()


def record(manifest: Manifest, **changes: Any) -> TrustRecord:
    return replace(TrustRecord.of(manifest, base_url=URL, signing_key=None), **changes)


@given(
    bits=st.integers(1, 8),
    ratio=st.integers(1 << 20, 2**31 - 1),
    other_bits=st.integers(1, 8),
    other=st.integers(1 << 20, 2**31 - 1),
)
def test_what_passes_is_a_postprocessing_or_has_no_larger_epsilon(
    bundle: ClientBundle, bits: int, ratio: int, other_bits: int, other: int
) -> None:
    """Fewer trials at a smaller ratio always pass, more at a larger one never."""
    accepted = record(noisy(bundle, bits=bits, ratio=ratio))
    offered = record(noisy(bundle, bits=other_bits, ratio=other))
    changes = accepted.changes(offered)
    if other_bits <= bits and other <= ratio:
        assert not changes
    elif other_bits >= bits and other >= ratio * 1.01:
        assert len(changes) == 2  # one for each variant
    if not changes:
        for name, variant in offered.variants.items():
            pairs = zip(variant.epsilons, accepted.variants[name].epsilons, strict=True)
            assert all(new is not None and old is not None and new <= old * (1 + 1e-8) for new, old in pairs)


def test_equal_noise_in_the_tail_only_is_not_enough(bundle: ClientBundle) -> None:
    """One trial at a larger ratio has the epsilon of 15 in the tail, and a larger one elsewhere."""
    accepted = record(noisy(bundle, bits=4, ratio=FIRST))
    tail = accepted.variants["open"].epsilons[0]
    assert tail is not None
    low, high = FIRST, 2**31 - 1
    while high - low > 1:  # the largest ratio whose epsilon in the tail is not larger
        middle = (low + high) // 2
        found = record(noisy(bundle, bits=1, ratio=middle)).variants["open"].epsilons[0]
        assert found is not None
        low, high = (middle, high) if found <= tail else (low, middle)
    changes = accepted.changes(record(noisy(bundle, bits=1, ratio=low)))
    assert "at delta 0.1" in str(changes[0]) or "at delta 0.001" in str(changes[0])


def test_the_same_table_under_a_lower_clip_is_less_noise(bundle: ClientBundle) -> None:
    accepted, offered = record(noisy(bundle)), record(noisy(bundle, max_level=20000))
    assert [str(change) for change in accepted.changes(offered)] == [
        "max_level must be at least 32767, got 20000, which is less noise"
    ]
    assert not offered.changes(accepted)


def test_each_variant_has_a_table_that_must_stay(bundle: ClientBundle) -> None:
    accepted = record(bundle.manifest)
    codes = replace(accepted.variants["open"], table="b" * 64)
    offered = replace(accepted, variants={**accepted.variants, "open": codes})
    assert [change.field for change in accepted.changes(offered)] == ["the SHA-256 of the table of open"]
    assert [change.field for change in offered.changes(accepted)] == ["the SHA-256 of the table of open"]


def test_signatures_and_transport_only_get_stronger(bundle: ClientBundle) -> None:
    signed = record(bundle.manifest, signing_key="a" * 64)
    unsigned = record(bundle.manifest)
    assert not unsigned.changes(signed)
    assert "the signing key must be" in str(signed.changes(unsigned)[0])
    assert "the signing key must be" in str(signed.changes(replace(signed, signing_key="b" * 64))[0])
    plain = replace(unsigned, transport="http")
    assert not plain.changes(unsigned)
    assert [str(change) for change in unsigned.changes(plain)] == ["the transport must be https, got http"]


def test_records_survive_json(bundle: ClientBundle) -> None:
    made = record(bundle.manifest, signing_key="a" * 64)
    assert TrustRecord.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TrustStore:
    return MemoryTrustStore() if request.param == "memory" else FileTrustStore(tmp_path / "new" / "trust.json")


def test_a_store_remembers_and_forgets(store: TrustStore, bundle: ClientBundle) -> None:
    trust = Trust(store)
    offer = Offer(URL, bundle.manifest)
    trust.check(offer)
    assert store.records() == {}  # a check alone changes nothing
    trust.admit(offer)
    assert list(store.records()) == ["del.example.com/small"]
    weaker = Offer(URL, noisy(bundle, ratio=1 << 30))
    for judge in (trust.check, trust.admit):
        with pytest.raises(BundleRejectedError):
            judge(weaker)
    assert store.records()["del.example.com/small"].fingerprint == bundle.fingerprint
    trust.admit(replace(weaker, on_purpose=True))
    trust.admit(weaker)
    store.update("del.example.com/small", lambda _: None)
    trust.admit(offer)


def test_the_file_is_the_owners_and_written_only_for_a_change(tmp_path: Path, bundle: ClientBundle) -> None:
    path = tmp_path / "private" / "trust.json"
    trust = Trust(FileTrustStore(path))
    trust.admit(Offer(URL, bundle.manifest))
    before = path.stat()
    assert before.st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    trust.admit(Offer(URL, bundle.manifest))
    assert path.stat().st_ino == before.st_ino
    assert {entry.name for entry in path.parent.iterdir()} == {"trust.json", "trust.json.lock"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 2, "servers": {}}',
        b'{"version": 1, "servers": []}',
        b'{"version": 1, "servers": {"a": {}}}',
        b'{"version": 1, "servers": {"a": null}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=lambda content: content[:12].decode("latin-1"),
)
def test_a_damaged_file_is_an_error_and_no_empty_store(tmp_path: Path, bundle: ClientBundle, content: bytes) -> None:
    path = tmp_path / "trust.json"
    path.write_bytes(content)
    trust = Trust(FileTrustStore(path))
    for judge in (trust.check, trust.admit):
        with pytest.raises(TrustUnavailableError, match="must be a trust file of version 1"):
            judge(Offer(URL, bundle.manifest))
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["table", "max_level", "variants", "signing_key", "accepted_at"])
@pytest.mark.parametrize("value", [[], 1.5, {"strict": {}}])
def test_a_record_of_other_types_is_an_error(tmp_path: Path, bundle: ClientBundle, name: str, value: object) -> None:
    path = tmp_path / "trust.json"
    path.write_text(json.dumps({"version": 1, "servers": {"a": {**record(bundle.manifest).to_json(), name: value}}}))
    with pytest.raises(TrustUnavailableError):
        FileTrustStore(path).records()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, bundle: ClientBundle) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrustUnavailableError, match="must be a file that this user can read and write"):
        Trust(FileTrustStore(tmp_path / "file" / "trust.json")).admit(Offer(URL, bundle.manifest))


def _admit(path: str, manifest: Manifest, numbers: range) -> None:
    trust = Trust(FileTrustStore(path))
    for number in numbers:
        trust.admit(Offer(f"https://host{number}", manifest))


def test_threads_and_processes_lose_no_record(tmp_path: Path, bundle: ClientBundle) -> None:
    path = str(tmp_path / "trust.json")
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_admit, args=(path, bundle.manifest, range(10))),
        context.Process(target=_admit, args=(path, bundle.manifest, range(10, 20))),
    ]
    threads = [threading.Thread(target=_admit, args=(path, bundle.manifest, range(20 + i, 30, 2))) for i in range(2)]
    for one in (*workers, *threads):
        one.start()
    for one in (*workers, *threads):
        one.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert set(FileTrustStore(path).records()) == {f"host{number}" for number in range(30)}


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_trust_file(tmp_path) == tmp_path / "trust.json"
    assert default_trust_file() == Path(os.environ["DEL_CONFIG_DIR"]) / "trust.json"
    monkeypatch.delenv("DEL_CONFIG_DIR")
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    assert default_trust_file() == tmp_path / "cache" / "trust.json"
    monkeypatch.delenv("DEL_CACHE_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("sys.platform", "linux")
    assert default_trust_file() == tmp_path / "config" / "del-serve" / "trust.json"


def test_the_shape_of_the_fixture(bundle: ClientBundle) -> None:
    """The comparisons above rest on it."""
    assert bundle.manifest.dim == DIM
    assert np.abs(bundle.table).max() > 20000
