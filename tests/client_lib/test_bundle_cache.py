"""The bundle cache: atomic, verified, shared by processes, never the cause of a wrong bundle."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from client_lib import BundleInvalidError, CacheUnavailableError
from client_lib.bundle_cache import BundleCache, load_local
from del_core.bundle import ClientBundle, pack_client
from del_core.bundle.files import user_cache_dir
from tests.support.bundle import make_bundle

URL = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def archive(bundle: ClientBundle) -> bytes:
    return pack_client(bundle.path)


def entry_of(directory: Path, bundle: ClientBundle) -> Path:
    return directory / "bundles" / bundle.fingerprint


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in (directory / "bundles").iterdir() if path.name.startswith(".")]


def test_stores_and_loads(tmp_path: Path, bundle: ClientBundle, archive: bytes) -> None:
    cache = BundleCache(tmp_path)
    assert cache.load(bundle.fingerprint) is None
    assert cache.load_last(URL) is None
    stored = cache.store(archive, URL)
    assert stored.fingerprint == bundle.fingerprint
    assert stored.path == entry_of(tmp_path, bundle)
    for found in (stored, cache.load(bundle.fingerprint), BundleCache(tmp_path).load_last(URL)):
        assert found is not None
        assert np.array_equal(found.table, bundle.table)
    assert cache.load_last("http://127.0.0.1:2") is None
    assert leftovers(tmp_path) == []


def test_the_table_is_mapped_and_read_only(tmp_path: Path, archive: bytes) -> None:
    table = BundleCache(tmp_path).store(archive, URL).table
    assert isinstance(table, np.memmap)
    assert not table.flags.writeable


@pytest.mark.parametrize("name", ["manifest.json", "table.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["alter", "cut", "delete", "empty"])
def test_damaged_entries_are_found_and_replaced(
    tmp_path: Path, bundle: ClientBundle, archive: bytes, name: str, damage: str
) -> None:
    cache = BundleCache(tmp_path)
    cache.store(archive, URL)
    path = entry_of(tmp_path, bundle) / name
    data = bytearray(path.read_bytes())
    if damage == "alter":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert cache.load_last(URL) is None
    assert not entry_of(tmp_path, bundle).exists()
    assert cache.store(archive, URL).fingerprint == bundle.fingerprint
    assert cache.load_last(URL) is not None
    assert leftovers(tmp_path) == []


def test_storing_over_a_damaged_entry_repairs_it(tmp_path: Path, bundle: ClientBundle, archive: bytes) -> None:
    cache = BundleCache(tmp_path)
    cache.store(archive, URL)
    (entry_of(tmp_path, bundle) / "extra").write_text("x")
    assert cache.store(archive, URL).fingerprint == bundle.fingerprint
    assert not (entry_of(tmp_path, bundle) / "extra").exists()


def test_an_entry_under_a_wrong_name_is_not_used(tmp_path: Path, bundle: ClientBundle, archive: bytes) -> None:
    """A whole and valid bundle, but not the one that its directory promises."""
    cache = BundleCache(tmp_path)
    cache.store(archive, URL)
    other = "f" * 64
    entry_of(tmp_path, bundle).rename(tmp_path / "bundles" / other)
    assert cache.load(other) is None


def test_the_old_table_stays_usable_when_its_entry_goes(tmp_path: Path, bundle: ClientBundle, archive: bytes) -> None:
    cache = BundleCache(tmp_path)
    stored = cache.store(archive, URL)
    (entry_of(tmp_path, bundle) / "tokenizer.json").write_text("{}")
    assert cache.load(bundle.fingerprint) is None
    assert np.array_equal(stored.table, bundle.table)


@pytest.mark.parametrize(
    "note",
    [b"", b"../../etc", b"F" * 64, b"\xff" * 64, b"a" * 100_000],
    ids=["empty", "path", "capitals", "binary", "long"],
)
def test_a_spoilt_note_is_as_good_as_none(tmp_path: Path, archive: bytes, note: bytes) -> None:
    cache = BundleCache(tmp_path)
    cache.store(archive, URL)
    (path,) = (tmp_path / "servers").iterdir()
    path.write_bytes(note)
    assert cache.load_last(URL) is None
    cache.store(archive, URL)
    assert cache.load_last(URL) is not None


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" * 2048])
def test_damaged_downloads_are_refused_and_leave_nothing(tmp_path: Path, archive: bytes, spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(BundleInvalidError, match="bundle from the server"):
        BundleCache(tmp_path).store(spoil(archive), URL)
    assert list((tmp_path / "bundles").iterdir()) == []


def test_every_altered_byte_of_a_download_is_noticed(tmp_path: Path, archive: bytes) -> None:
    """One byte in each of 40 places all over the archive."""
    for position in range(0, len(archive), len(archive) // 40):
        altered = bytearray(archive)
        altered[position] ^= 0x10
        with pytest.raises(BundleInvalidError):
            BundleCache(tmp_path).store(bytes(altered), URL)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, archive: bytes) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(CacheUnavailableError, match="cache_dir") as caught:
        BundleCache(blocker).store(archive, URL)
    assert str(blocker) in str(caught.value)


def test_threads_store_and_spoil_at_once(tmp_path: Path, bundle: ClientBundle, archive: bytes) -> None:
    """Some threads store, one keeps damaging the entry: every bundle that comes out is whole."""
    done = threading.Event()
    failures: list[BaseException] = []
    began = time.monotonic()
    BundleCache(tmp_path).store(archive, URL)
    pause = max(0.1, 20 * (time.monotonic() - began))  # a store must have a chance between two damages

    def store() -> None:
        try:
            for _ in range(15):
                assert np.array_equal(BundleCache(tmp_path).store(archive, URL).table, bundle.table)
        except BaseException as error:
            failures.append(error)

    def spoil() -> None:
        while not done.wait(pause):
            try:
                (entry_of(tmp_path, bundle) / "extra").write_text("x")
            except OSError:
                continue

    threads = [threading.Thread(target=store) for _ in range(3)]
    spoiler = threading.Thread(target=spoil)
    spoiler.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    spoiler.join()
    assert failures == []
    assert leftovers(tmp_path) == []


def test_processes_share_it(tmp_path: Path, bundle: ClientBundle, archive: bytes) -> None:
    (tmp_path / "archive").write_bytes(archive)
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from client_lib.bundle_cache import BundleCache
        cache = BundleCache(Path({str(tmp_path / "cache")!r}))
        data = Path({str(tmp_path / "archive")!r}).read_bytes()
        for _ in range(10):
            assert cache.store(data, {URL!r}).fingerprint == {bundle.fingerprint!r}
            assert cache.load_last({URL!r}) is not None
        """
    )
    workers = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    results = [worker.communicate(timeout=60)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], results
    assert leftovers(tmp_path / "cache") == []


def test_local_bundles_are_found_whole_or_in_part(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert load_local(tmp_path / "bundle").fingerprint == bundle.fingerprint
    assert load_local(tmp_path / "bundle" / "client").fingerprint == bundle.fingerprint


def test_a_missing_or_damaged_local_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalidError, match="nowhere"):
        load_local(tmp_path / "nowhere")
    make_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "client" / "table.safetensors").write_bytes(b"x")
    with pytest.raises(BundleInvalidError, match=r"table\.safetensors"):
        load_local(tmp_path / "bundle")


def test_the_directory_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archive: bytes) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "chosen"))
    assert user_cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("DEL_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert user_cache_dir() == tmp_path / "xdg" / "del-serve"
    BundleCache(tmp_path / "new").store(archive, URL)
    assert os.stat(tmp_path / "new" / "bundles").st_mode & 0o077 == 0
