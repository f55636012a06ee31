"""Libraries that people use with OpenAI's API, unchanged but for base URL and model name.

Each runs in an environment of its own, with the pinned version of benchmarks/applications.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.applications.command import RESULT, best_level
from benchmarks.applications.environments import CASES, LIBRARIES, install, libraries, run
from client_lib.proxy import ProxySettings
from del_core.bundle import ClientBundle, load_bundle
from del_core.demo import smollm2_bundle_path
from tests.support.helpful import helpful
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def url(bundle: ClientBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One proxy for all libraries, in front of a server that answers as a good model would."""
    cache = tmp_path_factory.mktemp("cache")
    with ScriptedServer(bundle).running() as server:
        server.script = helpful(server)
        with RunningProxy(server.url, ProxySettings(), cache_dir=cache).running() as proxy:
            yield proxy.url


@pytest.mark.slow
@pytest.mark.parametrize("name", libraries())
def test_an_application(name: str, url: str, tmp_path: Path) -> None:
    install(libraries()[name], tmp_path)
    assert run(libraries()[name], tmp_path, url=url, model="open") == dict.fromkeys(CASES, "yes")


def test_every_library_is_pinned_and_has_run() -> None:
    results = json.loads(RESULT.read_text("utf-8"))["libraries"]
    assert list(results) == list(libraries())
    for name, library in libraries().items():
        assert (LIBRARIES / library.script).is_file()
        assert "" not in library.versions().values()
        assert results[name]["versions"] == library.versions(), f"python -m benchmarks.applications --only {name}"
        assert set(results[name]["scripted"]) == set(CASES)
        assert ("level" in results[name]) == ("smollm2" in results[name])


def test_the_level_is_one_of_the_bundle_with_an_adapter() -> None:
    assert load_bundle(smollm2_bundle_path()).variants[best_level()].adapter is not None
