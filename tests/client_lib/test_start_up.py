"""A start on a cached bundle reads manifest and tokenizer, and the table only after changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client_lib import bundle_cache
from client_lib.bundle_cache import BundleCache
from del_core.bundle import ClientBundle, pack_client
from tests.support.bundle import make_bundle

URL = "http://127.0.0.1:1"
ROWS = 400_000  # of 8 int16 levels: a table of 6.4 MB

# Prints what a fresh process read by system calls to load the bundle, and how much of the table is
# then resident.
_START = """
import json, sys
from client_lib.bundle_cache import BundleCache
from client_lib.prompts.encoder import Encoder
import tokenizers

def counters():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])

before = counters()
encoder = Encoder(BundleCache(__import__("pathlib").Path(sys.argv[1])).load(sys.argv[2]))
read = counters() - before

def resident():
    with open("/proc/self/smaps") as file:
        lines = iter(file)
        for line in lines:
            if "table.safetensors" in line:
                return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

mapped = resident()
level = int(encoder.bundle.table[200_000, 0])
print(json.dumps({"read": read, "resident_kb": mapped, "later_kb": resident(), "level": level}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClientBundle, bytes]:
    bundle = make_bundle(tmp_path_factory.mktemp("large") / "bundle", rows=ROWS)
    return bundle, pack_client(bundle.path)


@pytest.fixture
def any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be noted however new they are."""
    monkeypatch.setattr(bundle_cache, "CLOCK_TICK_NS", -(10**12))


def verifications(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The ``verify`` of every load from now on."""

    seen: list[bool] = []
    original = bundle_cache.load_client

    def recording(path: Path, *, verify: bool = True) -> ClientBundle:
        seen.append(verify)
        return original(path, verify=verify)

    monkeypatch.setattr(bundle_cache, "load_client", recording)
    return seen


@pytest.mark.usefixtures("any_age")
def test_a_start_maps_the_table_and_does_not_read_it(tmp_path: Path, large: tuple[ClientBundle, bytes]) -> None:
    bundle, archive = large
    BundleCache(tmp_path).store(archive, URL)
    command = [sys.executable, "-c", _START, str(tmp_path), bundle.fingerprint]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    tokenizer = bundle.tokenizer_path.stat().st_size
    assert found["read"] < 2 * tokenizer + 100_000 < 6_400_000 / 4  # tokenizer, manifest, header; the rest is Python's
    assert found["resident_kb"] <= 64  # the pages of the header
    # One row brings what the kernel maps around one page, up to 2 MiB, not the table.
    assert 0 < found["later_kb"] < 6_400_000 / 1024 / 2
    assert found["level"] == int(bundle.table[200_000, 0])


@pytest.mark.usefixtures("any_age")
@pytest.mark.parametrize("how", ["write", "replace", "restore-times"])
def test_a_changed_entry_is_verified_again_and_found(
    tmp_path: Path, bundle: ClientBundle, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BundleCache(tmp_path)
    stored = cache.store(pack_client(bundle.path), URL)
    seen = verifications(monkeypatch)
    assert cache.load(bundle.fingerprint) is not None
    assert seen == [False]
    table = stored.path / "table.safetensors"
    before, data = table.stat(), bytearray(table.read_bytes())
    data[-1] ^= 1
    if how == "replace":
        table.with_name("other").write_bytes(data)
        os.replace(table.with_name("other"), table)
    else:
        table.write_bytes(data)
    if how == "restore-times":
        os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.load(bundle.fingerprint) is None
    assert seen == [False, True]


def test_files_too_new_to_tell_are_verified_every_time(
    tmp_path: Path, bundle: ClientBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_cache, "CLOCK_TICK_NS", 10**15)
    cache = BundleCache(tmp_path)
    cache.store(pack_client(bundle.path), URL)
    seen = verifications(monkeypatch)
    for _ in range(2):
        assert cache.load(bundle.fingerprint) is not None
    assert seen == [True, True]


@pytest.mark.usefixtures("any_age")
@pytest.mark.parametrize("note", [b"", b"[]", b"\xff", b"[[1, 2, 3, 4, 5]]"])
def test_a_note_that_does_not_fit_is_no_note(
    tmp_path: Path, bundle: ClientBundle, note: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BundleCache(tmp_path)
    cache.store(pack_client(bundle.path), URL)
    (tmp_path / "verified" / bundle.fingerprint).write_bytes(note)
    seen = verifications(monkeypatch)
    found = cache.load(bundle.fingerprint)
    assert found is not None
    assert np.array_equal(found.table, bundle.table)
    assert seen == [True]


@pytest.mark.usefixtures("any_age")
def test_without_room_for_a_note_the_bundle_is_used_all_the_same(tmp_path: Path, bundle: ClientBundle) -> None:
    (tmp_path / "verified").write_text("not a directory")
    cache = BundleCache(tmp_path)
    assert cache.store(pack_client(bundle.path), URL).fingerprint == bundle.fingerprint
    assert cache.load(bundle.fingerprint) is not None
