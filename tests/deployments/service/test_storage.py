"""Bundles and models in storage: copied once, verified before use, refused in one sentence."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from del_core.bundle import load_bundle
from deployments.app import build
from deployments.replica import start_service
from deployments.service.storage import StorageError, fetch_bundle, fetch_model
from deployments.settings import SettingsError, fetched, parse_settings, resolve_paths
from tests.support.tiny import Tiny, make_other_bundle

STORE = "memory://store"


@pytest.fixture
def store(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    """A bundle and its model in memory, and a cache for this test."""
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.put(f"{tiny.bundle}/", "/store/bundle/", recursive=True)
    system.put(f"{tiny.model}/", "/store/model/", recursive=True)
    yield system
    system.rm("/store", recursive=True)


def files(directory: Path) -> dict[str, bytes]:
    return {str(one.relative_to(directory)): one.read_bytes() for one in directory.rglob("*") if one.is_file()}


def test_a_bundle_is_copied_once_and_each_manifest_has_its_copy(
    store: fsspec.AbstractFileSystem, tiny: Tiny, tmp_path: Path
) -> None:
    copy = fetch_bundle(f"{STORE}/bundle")
    assert files(copy) == files(tiny.bundle)
    pinned = f"{STORE}/bundle#{load_bundle(tiny.bundle).fingerprint}"
    store.rm("/store/bundle/server", recursive=True)  # nothing but the manifest is read again
    assert fetch_bundle(pinned) == fetch_bundle(f"{STORE}/bundle/") == copy
    newer = make_other_bundle(tiny, tmp_path / "newer", seed=7)
    store.rm("/store/bundle", recursive=True)
    store.put(f"{newer}/", "/store/bundle/", recursive=True)
    assert files(fetch_bundle(f"{STORE}/bundle")) == files(newer)
    with pytest.raises(StorageError, match=f"must be the bundle .* got {load_bundle(newer).fingerprint}"):
        fetch_bundle(pinned)


def test_a_model_is_the_one_of_the_bundle_and_brings_no_code(
    store: fsspec.AbstractFileSystem, tiny: Tiny, tmp_path: Path
) -> None:
    expected = load_bundle(tiny.bundle).manifest.base_model
    for name in ("pytorch_model.bin", "modeling_x.py", "weights.pkl"):
        store.pipe(f"/store/model/{name}", b"code")
    copy = fetch_model(f"{STORE}/model", expected)
    assert files(copy) == files(tiny.model)
    store.rm("/store/model", recursive=True)
    assert fetch_model(f"{STORE}/model", expected) == copy
    store.pipe({"/store/other/config.json": b"{}", "/store/other/model.safetensors": b""})
    with pytest.raises(
        StorageError, match=rf"memory://store/other must have the checksum .* of {expected.name}, .* got"
    ):
        fetch_model(f"{STORE}/other", expected, tmp_path / "fresh")
    assert not list((tmp_path / "fresh").rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("manifest.json", None, "memory://store/bundle/manifest.json must be readable, got no such file or directory"),
        ("manifest.json", b"{}", "memory://store/bundle/manifest.json: "),
        ("server/prior.safetensors", None, "server/prior.safetensors must be readable, got no such file or directory"),
        ("client/table.safetensors", b"another", "memory://store/bundle/client/table.safetensors: must have"),
    ],
)
def test_a_damaged_bundle_is_one_sentence_and_leaves_nothing(
    store: fsspec.AbstractFileSystem, name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    store.rm(f"/store/bundle/{name}")
    if content is not None:
        store.pipe(f"/store/bundle/{name}", content)
    with pytest.raises(StorageError) as caught:
        fetch_bundle(f"{STORE}/bundle")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(one.endswith(".lock") for one in files(tmp_path / "cache"))


def test_several_replicas_of_a_node_make_one_copy(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    # Readers of fsspec's memory share one file and its position, unlike those of real storage.
    monkeypatch.setattr(type(store), "_open", lambda self, path, **_: io.BytesIO(self.store[path].getvalue()))
    get = type(store).get_file
    monkeypatch.setattr(
        type(store), "get_file", lambda self, source, target: (copied.append(source), get(self, source, target))[1]
    )
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_bundle(f"{STORE}/bundle"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(copied) == len(set(copied)) == len(files(found[0]))


async def test_a_replica_starts_from_storage_and_logs_its_steps(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    values = {"bundle": tiny.bundle.as_uri(), "base_model": tiny.model.as_uri(), "engine": {"kind": "mock"}}
    with caplog.at_level("INFO", logger="deployments"):
        service = await start_service(parse_settings(values))
    await service.shutdown()
    loggers = ("deployments.service.storage", "deployments.replica")
    first, second, last = (record.getMessage() for record in caplog.records if record.name in loggers)
    assert first.startswith(f"copied and verified {tiny.bundle.as_uri()} (")
    assert second.startswith(f"copied and verified {tiny.model.as_uri()} (")
    steps = ["storage", "verification", "engine", "first tokens"]
    assert [part.rsplit(" ", 2)[0] for part in last.rpartition("(")[2].split(", ")] == steps


def test_a_deployment_fails_before_any_replica_starts(store: fsspec.AbstractFileSystem) -> None:
    values = {"bundle": f"{STORE}/bundle", "base_model": f"{STORE}/model", "keys": {"open": True}}
    build(values)
    with pytest.raises(StorageError, match=r"memory://store/none/manifest.json must be readable"):
        build({**values, "extra_bundles": [f"{STORE}/none"]})
    with pytest.raises(StorageError, match=r"memory://store/bundle must hold config.json and \*.safetensors, got"):
        build({**values, "base_model": f"{STORE}/bundle"})


def test_paths_stay_as_they_are(tiny: Tiny) -> None:
    settings = parse_settings({"bundle": str(tiny.bundle), "base_model": str(tiny.model)})
    assert fetched(settings) == settings
    url = resolve_paths({"bundle": f"{STORE}/bundle", "base_model": "model"}, tiny.model.parent, "file")
    assert (url.bundle, url.base_model) == (f"{STORE}/bundle", str(tiny.model.parent.resolve() / "model"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bundle": "ftp://host/b"}, "bundle must be a path or a URL of file, s3, gs, abfs, memory, got ftp://..."),
        ({"bundle": "s3://key:SECRET@b/c"}, "bundle must be a URL without credentials and query, got s3://..."),
        ({"extra_bundles": ["s3://b/c?token=SECRET"]}, "bundle must be a URL without credentials and query"),
        ({"bundle": "s3://b/c#v3"}, "bundle must be a URL with a fingerprint, 64 hexadecimal digits, or nothing"),
        ({"base_model": f"s3://b/c#{'0' * 64}"}, "base_model must be a URL with nothing behind #"),
    ],
)
def test_urls_that_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"base_model": "/model", **fields})
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_protocol_without_its_package_is_told() -> None:
    with pytest.raises(StorageError, match=r"gs://b/c needs a package of the extra del-serve.storage.: "):
        fetch_bundle("gs://b/c")
