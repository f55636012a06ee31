"""The packaged config files on a cluster of two nodes, deployed by its address."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from client_lib import Client, private
from cluster.local import LocalServer
from cluster.local.nodes import Nodes
from cluster.local.server import start_nodes
from delctl.main import run
from deployments.auth.keys import hash_key
from tests.support.tiny import Tiny, make_other_bundle

CONFIG = Path(__file__).resolve().parents[2] / "cluster/config"
KEY = "del-" + "k" * 43
WITHIN_S = 600.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(WITHIN_S)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalServer]:
    with start_nodes(Nodes(2, 2, cpus=6), startup_timeout_s=WITHIN_S) as server:
        yield server


@pytest.fixture(autouse=True)
def _token(cluster: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.ray_token)


@pytest.fixture(scope="module")
def newer(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_other_bundle(tiny, Path(tmp_path_factory.mktemp("newer")) / "bundle", seed=7)


def deploy(cluster: LocalServer, path: Path, *options: str) -> int:
    return run(["deploy", str(path), "--address", str(cluster.dashboard_url), *options])


def adapted(name: str, directory: Path, bundles: list[Path], model: Path) -> Path:
    """Write a packaged file with bundles, model and keys of this machine, for the mock engine."""
    values: dict[str, Any] = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    keys = directory / "keys.yaml"
    keys.write_text(yaml.safe_dump({"app": {"hashes": [hash_key(KEY)]}}))
    for application in values["applications"]:
        args = application["args"]
        args |= {"bundle": str(bundles[0]), "base_model": str(model), "keys": {"file": str(keys)}}
        args["engine"] = {"kind": "mock"}
        if "extra_bundles" in args:
            args["extra_bundles"] = [str(bundle) for bundle in bundles[1:]]
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def complete(url: str, cache: Path, variant: str = "open") -> str:
    with Client(url, cache_dir=cache, api_key=KEY) as client:
        return str(
            client.complete([private("the old house by the river")], variant=variant, max_tokens=4).finish_reason
        )


def test_the_laptop(cluster: LocalServer, tmp_path: Path) -> None:
    assert deploy(cluster, CONFIG / "laptop.yaml") == 0
    assert complete(cluster.url, tmp_path, "balanced") in ("length", "stop")


def test_the_config_inside_the_chart(cluster: LocalServer, tmp_path: Path) -> None:
    """As KubeRay sends it to the head pod."""
    values = {"keys": {"open": True, "existingSecret": ""}, "test": {"apiKeySecret": ""}}
    files = helm_python.Chart.load(CONFIG.parent / "helm/del-serve").render(values, name="release", namespace="space")
    service = yaml.safe_load(files["del-serve/templates/rayservice.yaml"])
    path = tmp_path / "serve.yaml"
    path.write_text(service["spec"]["serveConfigV2"])
    assert deploy(cluster, path) == 0
    assert complete(cluster.url, tmp_path, "balanced") in ("length", "stop")


def test_several_models(cluster: LocalServer, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = adapted("several-models", tmp_path, [tiny.bundle], tiny.model)
    assert deploy(cluster, path) == 0
    printed = capsys.readouterr().out
    assert {line for line in printed.splitlines() if line.endswith(("starts", "stops"))} >= {
        "chat: starts",
        "drafts: starts",
        "del-serve: stops",
    }
    for name in ("chat", "drafts"):
        assert complete(f"{cluster.url}/{name}", tmp_path / name) == "length"
    assert run(["status", "--address", str(cluster.dashboard_url)]) == 0
    shown = capsys.readouterr().out
    assert "chat   RUNNING, 1 of 1 replicas" in shown
    assert "del-serve   " not in shown


def test_several_bundles(cluster: LocalServer, tiny: Tiny, newer: Path, tmp_path: Path) -> None:
    assert deploy(cluster, adapted("several-bundles", tmp_path, [newer, tiny.bundle], tiny.model)) == 0
    assert complete(cluster.url, tmp_path / "new") == "length"
    with Client(cluster.url, cache_dir=tmp_path / "old", api_key=KEY, bundle=tiny.bundle / "client") as client:
        assert client.complete([private("the old house")], variant="open", max_tokens=4).finish_reason == "length"


def test_serve_deploy_does_the_same(
    cluster: LocalServer, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adapted("several-models", tmp_path, [tiny.bundle], tiny.model)
    values = yaml.safe_load(path.read_text())
    values["http_options"] = {"host": cluster.host, "port": cluster.port}
    values["proxy_location"] = "HeadOnly"
    path.write_text(yaml.safe_dump(values))
    serve = Path(sys.executable).with_name("serve")
    command = [str(serve), "deploy", str(path), "--address", str(cluster.dashboard_url)]
    subprocess.run(command, check=True, env=dict(os.environ), timeout=WITHIN_S)
    assert deploy(cluster, path, "--check") == 0
    assert capsys.readouterr().out == "nothing changes\n"
    assert deploy(cluster, path) == 0  # and waits for what serve deploy has begun
    assert complete(f"{cluster.url}/chat", tmp_path) == "length"


def test_settings_that_do_not_start_leave_the_old_replicas(
    cluster: LocalServer, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = adapted("several-models", tmp_path, [tiny.bundle], tiny.model)
    assert deploy(cluster, path) == 0
    values = yaml.safe_load(path.read_text())
    values["applications"][0]["args"]["bundle"] = str(tmp_path / "missing")
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert deploy(cluster, tmp_path / "bad.yaml") == 1
    error = capsys.readouterr().err
    assert "application chat was not deployed" in error
    assert "missing" in error
    assert complete(f"{cluster.url}/chat", tmp_path) == "length"


def test_without_the_token_the_cluster_says_what_it_needs(
    cluster: LocalServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert run(["status", "--address", str(cluster.dashboard_url)]) == 1
    assert "needs the cluster's token, in RAY_AUTH_TOKEN" in capsys.readouterr().err
