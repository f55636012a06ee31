"""How ``delctl serve`` turns its options into settings; a server runs in test_end_to_end.py."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delctl.commands.serve import announce, announcement, resolve_served
from delctl.main import run
from deployments.settings import as_applications, parse_settings


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    for name in ("bundle", "model", "other"):
        (tmp_path / name).mkdir()
    return {name: tmp_path / name for name in ("bundle", "model", "other")}


def _read(config: Path | None = None, **options: Any) -> Any:
    defaults: dict[str, Any] = {"bundle": None, "model": None, "replicas": None, "max_replicas": None}
    return resolve_served(config=config, **{**defaults, **options})


def test_without_options_it_is_the_demo() -> None:
    settings = _read()
    assert (settings.bundle, settings.base_model) == ("demo", None)
    assert (settings.scaling.min_replicas, settings.scaling.max_replicas) == (1, 1)


def test_bundle_and_model(places: dict[str, Path]) -> None:
    settings = _read(bundle=places["bundle"], model=places["model"])
    assert (settings.bundle_path, settings.base_model_path) == (places["bundle"], places["model"])


def test_options_override_the_file(places: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("bundle: bundle\nbase_model: model\nengine: {max_num_seqs: 3}\nscaling: {max_replicas: 4}\n")
    settings = _read(config)
    assert (settings.bundle_path, settings.base_model_path) == (places["bundle"], places["model"])
    settings = _read(config, model=places["other"], replicas=2)
    assert (settings.bundle_path, settings.base_model_path) == (places["bundle"], places["other"])
    assert (settings.engine.max_num_seqs, settings.scaling.min_replicas, settings.scaling.max_replicas) == (3, 2, 2)


def test_scaling_options() -> None:
    scaling = _read(max_replicas=3).scaling
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 3)
    scaling = _read(replicas=3).scaling
    assert (scaling.min_replicas, scaling.max_replicas) == (3, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bundle", "{bundle}"], "--bundle needs --model"),
        (["--replicas", "1", "--max-replicas", "2"], "exclude each other"),
        (["--bundle", "{bundle}", "--model", "{model}"], "must be present"),
        (["--bundle", "/nowhere"], "/nowhere must be a bundle's directory"),
        (["--port", "70000"], "70000 is not in the range"),
        (["--config", "{config}"], "max_replicas"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_starts(
    options: list[str], words: str, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("scaling: {min_replicas: 3, max_replicas: 2}\n")
    given = {"config": config, **places}
    assert run(["serve", *(option.format(**given) for option in options)]) == 2
    assert words in capsys.readouterr().err


def test_a_file_may_name_several_applications(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("applications: [{name: one, route_prefix: /one}, {name: two, route_prefix: /two}]\n")
    assert [one.path for one in _read(config)] == ["/one", "/two"]
    for options in (["--bundle", "demo"], ["--model", "demo"], ["--replicas", "2"], ["--max-replicas", "2"]):
        assert run(["serve", "--config", str(config), *options]) == 2
        assert f"{options[0]} is for one model" in " ".join(capsys.readouterr().err.split())


def test_what_is_served_is_announced_with_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "models.yaml"
    config.write_text("applications: [{name: one, route_prefix: /one}, {name: two, route_prefix: /two}]\n")
    server: Any = SimpleNamespace(url="http://127.0.0.1:8000", proxy="haproxy", applications=_read(config))
    announce(server, "127.0.0.1")
    out = capsys.readouterr().out
    for expected in ("http://127.0.0.1:8000/one\n", "http://127.0.0.1:8000/two\n", "--url http://127.0.0.1:8000/one\n"):
        assert expected in out
    assert out.count("fingerprint") == 2
    said = announcement(server)
    assert [one["url"] for one in said["applications"]] == ["http://127.0.0.1:8000/one", "http://127.0.0.1:8000/two"]
    assert all(variant["epsilon"] > 0 for one in said["applications"] for variant in one["variants"].values())
    assert json.loads(json.dumps(said)) == said
    assert "Attention" not in out
    announce(server, "0.0.0.0")
    assert "without encryption or keys" in capsys.readouterr().out


class Ready(BaseHTTPRequestHandler):
    """A replica whose KV cache holds 640 tokens."""

    def do_GET(self) -> None:
        body = b'{"status":"ready","context_length":640}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("engine", "reason"), [({}, True), ({"max_model_len": 640}, False)])
def test_a_context_that_was_cut_is_announced(
    engine: dict[str, int], reason: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = parse_settings({"engine": engine})
    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as replica:
        serving = threading.Thread(target=replica.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{replica.server_port}"
        try:
            served: Any = SimpleNamespace(url=url, proxy="haproxy", applications=as_applications(settings))
            announce(served, "127.0.0.1")
        finally:
            replica.shutdown()
            serving.join()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("context")]
    assert "640 tokens a request" in line
    assert ("the model has 1024" in line and "engine.kv_cache_memory_bytes" in line) == reason
