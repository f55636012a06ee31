"""The archive of a bundle's client part: round trips, the vector, and hostile archives."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from del_core.bundle import (
    CLIENT_FILES,
    MAX_ARCHIVE_BYTES,
    BundleError,
    canonical_json,
    load_bundle,
    load_client,
    pack_client,
    unpack_client,
    write_bundle,
)
from del_core.bundle import archive as _tar
from tests.support.core_bundles import (
    content,
    refusal,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "bundle.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "original"
    write_bundle(path, **content())
    return path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A bundle that the test may destroy."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def client_members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(name, (path / "client" / name).read_bytes()) for name in CLIENT_FILES]


def test_archives_round_trip(original: Path, tmp_path: Path) -> None:
    data = pack_client(original)
    assert data == pack_client(original / "client")
    assert len(data) <= MAX_ARCHIVE_BYTES
    fingerprint = load_bundle(original).fingerprint
    for form in (data, bytearray(data), memoryview(data)):
        target = tmp_path / "cache" / type(form).__name__
        client = unpack_client(form, target, fingerprint=fingerprint)
        assert client.fingerprint == fingerprint == load_client(target).fingerprint
        np.testing.assert_array_equal(client.table, load_bundle(original).client.table)
        for name in CLIENT_FILES:
            assert (target / name).read_bytes() == (original / "client" / name).read_bytes()


def test_archives_are_tar_files(original: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_client(original)), mode="r:") as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos] == list(CLIENT_FILES)
        for info in infos:
            assert info.isreg()
            assert (info.mode, info.uid, info.gid, info.mtime, info.uname) == (0o644, 0, 0, 0, "")
            file = archive.extractfile(info)
            assert file is not None
            assert file.read() == (original / "client" / info.name).read_bytes()


def test_archive_vector(tmp_path: Path) -> None:
    client = unpack_client(bytes.fromhex(VECTORS["archive"]), tmp_path / "c", fingerprint=VECTORS["fingerprint"])
    assert client.table.tolist() == VECTORS["table"]
    assert (tmp_path / "c" / "manifest.json").read_text("utf-8") == VECTORS["manifest"]
    bare = VECTORS["manifest_without_fingerprint"]
    assert hashlib.sha256(bare.encode()).hexdigest() == VECTORS["fingerprint"]
    assert VECTORS["manifest"].replace(f'"fingerprint":"{VECTORS["fingerprint"]}",', "") == bare
    assert pack_client(tmp_path / "c").hex() == VECTORS["archive"]


def test_documented_members_are_those_of_the_vector() -> None:
    page = (Path(__file__).parents[3] / "docs/reference/bundle-format.md").read_text("utf-8")
    page = page[page.index("## Manifest") : page.index("### Adapters")]
    documented = set(re.findall(r"^\| `([a-z0-9_.]+)` \| [^|]+ \| [^|]*\|$", page, re.MULTILINE)) - {
        "server",
        "chat",
        "adapter",
    }
    documented |= {"mechanism", "table"}  # in the text below the tables
    codes = json.loads((Path(__file__).parents[2] / "vectors" / "bundle_codes.json").read_text("utf-8"))
    manifests = [json.loads(vectors["manifest"]) for vectors in (VECTORS, codes)]
    present = set()
    for value in (*manifests, *(variant for manifest in manifests for variant in manifest["variants"])):
        for key, item in value.items():
            nested = isinstance(item, dict) and key in ("base_model", "guarantees")
            present |= {f"{key}.{inner}" for inner in item} if nested else {key}
    assert documented == present


@pytest.mark.parametrize("case", VECTORS["canonical"], ids=["strings", "numbers"])
def test_canonical_json_vectors(case: dict[str, Any]) -> None:
    assert canonical_json(case["value"]).decode() == case["text"]


def hostile(original: Path) -> dict[str, bytes]:
    """Archives that must leave nothing behind."""
    manifest, table, tokenizer = client_members(original)
    link_type, hard, device, pipe_, folder, sparse = b"2", b"1", b"3", b"6", b"5", b"S"
    good = pack_client(original)
    huge = bytearray(good)
    huge[124:136] = b"77777777777\0"
    base256 = bytearray(good)
    base256[124:136] = b"\x80" + (2**62).to_bytes(11, "big")
    negative = bytearray(good)
    negative[124:136] = b"-0000000001\0"
    past_end = bytearray(good)
    past_end[124:136] = b"00000777777\0"
    checksum = bytearray(good)
    checksum[148] ^= 1
    padding = bytearray(good)
    padding[512 + manifest[0].size] = 1
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 20,
        "zeros": bytes(10240),
        "gzip": b"\x1f\x8b" + bytes(1000),
        "cut-in-header": good[:300],
        "cut-in-data": good[: 512 + 10],
        "cut-before-end": good[:-1024],
        "one-zero-block": good[:-512],
        "trailing-byte": good + b"\0",
        "trailing-member": good[:-1024] + good,
        "path-traversal": archive_of(member("../manifest.json", manifest[1]), table, tokenizer),
        "absolute-path": archive_of(member("/manifest.json", manifest[1]), table, tokenizer),
        "dot-path": archive_of(member("./manifest.json", manifest[1]), table, tokenizer),
        "folder-path": archive_of(member("client/manifest.json", manifest[1]), table, tokenizer),
        "prefix-path": archive_of(member("a" * 90 + "/" + "b" * 60, manifest[1]), table, tokenizer),
        "nul-in-name": bytes(good[:13]) + b"\0x" + bytes(good[15:]),
        "symlink": archive_of(member("manifest.json", type=link_type, linkname="/etc/passwd"), table, tokenizer),
        "hard-link": archive_of(manifest, table, member("tokenizer.json", type=hard, linkname="manifest.json")),
        "device": archive_of(manifest, table, member("tokenizer.json", type=device)),
        "pipe": archive_of(manifest, table, member("tokenizer.json", type=pipe_)),
        "directory": archive_of(manifest, table, member("tokenizer.json", type=folder)),
        "sparse": archive_of(manifest, table, member("tokenizer.json", tokenizer[1], type=sparse)),
        "duplicate-name": archive_of(manifest, manifest, table, tokenizer),
        "other-order": archive_of(table, manifest, tokenizer),
        "missing-member": archive_of(manifest, table),
        "extra-member": archive_of(manifest, table, tokenizer, member("evil.py", b"import os")),
        "executable": archive_of(member("manifest.json", manifest[1], mode=0o755), table, tokenizer),
        "setuid": archive_of(member("manifest.json", manifest[1], mode=0o4644), table, tokenizer),
        "owner": archive_of(member("manifest.json", manifest[1], uid=1000, uname="root"), table, tokenizer),
        "pax-header": archive_of(
            member("manifest.json", manifest[1], pax_headers={"path": "../x"}),
            table,
            tokenizer,
            format=tarfile.PAX_FORMAT,
        ),
        "gnu-long-name": archive_of(member("m" * 200, manifest[1]), table, tokenizer, format=tarfile.GNU_FORMAT),
        "many-long-names": archive_of(*[member("m" * 200)] * 3000, format=tarfile.GNU_FORMAT),
        "huge-size": bytes(huge),
        "base-256-size": bytes(base256),
        "negative-size": bytes(negative),
        "size-past-the-end": bytes(past_end),
        "wrong-checksum": bytes(checksum),
        "padding-not-zero": bytes(padding),
        "altered-table": good.replace(table[1], table[1][:-1] + bytes([table[1][-1] ^ 1])),
    }


def test_hostile_archives_leave_nothing_behind(original: Path, tmp_path: Path) -> None:
    for name, data in hostile(original).items():
        with pytest.raises(BundleError) as caught:
            unpack_client(data, tmp_path / "cache" / "c")
        assert str(caught.value).isprintable(), name
        assert list(tmp_path.rglob("*")) in ([], [tmp_path / "cache"]), name


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_archives_raise_nothing_else(original: Path, data: st.DataObject) -> None:
    archive = bytearray(pack_client(original))
    at = data.draw(st.integers(0, len(archive) - 1))
    if data.draw(st.booleans()):
        archive[at : at + data.draw(st.integers(0, 600))] = data.draw(st.binary(max_size=20))
    else:
        archive[at] ^= data.draw(st.integers(1, 255))
    limits = dict.fromkeys(CLIENT_FILES, 10_000)
    try:
        found = _tar.unpack(bytes(archive), limits)
    except BundleError:
        return
    # Data may have changed, which the digests find, and nothing else.
    assert list(found) == list(CLIENT_FILES)
    assert _tar.pack([(name, bytes(view)) for name, view in found.items()]) == bytes(archive)


def test_a_member_above_its_limit_is_refused(original: Path) -> None:
    archive = pack_client(original)
    sizes = {name: (original / "client" / name).stat().st_size for name in CLIENT_FILES}
    assert list(_tar.unpack(archive, sizes)) == list(CLIENT_FILES)
    for name, size in sizes.items():
        error = refusal(lambda name=name, size=size: _tar.unpack(archive, {**sizes, name: size - 1}), name)
        assert error.reason == f"must have at most {size - 1} bytes, got {size}"


def test_an_archive_of_another_bundle_is_refused(original: Path, tmp_path: Path) -> None:
    error = refusal(lambda: unpack_client(pack_client(original), tmp_path / "c", fingerprint="0" * 64), "manifest.json")
    assert f"must be {'0' * 64}, got" in error.reason
    assert list(tmp_path.iterdir()) == []


def test_unpacking_twice_keeps_the_first(original: Path, tmp_path: Path) -> None:
    data = pack_client(original)
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda _: unpack_client(data, tmp_path / "c"), range(24)))
    assert {client.fingerprint for client in clients} == {load_bundle(original).fingerprint}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_unpacking_never_replaces_another_bundle(original: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "other", **content(clip=2.0))
    target = tmp_path / "other" / "client"
    before = load_client(target).fingerprint
    refusal(lambda: unpack_client(pack_client(original), target), str(target))
    assert load_client(target).fingerprint == before


def test_packing_verifies_first(bundle: Path) -> None:
    path = bundle / "client" / "table.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    refusal(lambda: pack_client(bundle), "table.safetensors")
