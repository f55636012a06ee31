"""Fixtures of the commands that talk to a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from del_core.bundle import ClientBundle
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> ClientBundle:
    """The bundle of the scripted server."""
    return make_bundle(tmp_path_factory.mktemp("offered") / "bundle")


@pytest.fixture
def scripted(offered: ClientBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A server that ``$DEL_URL`` names, and an empty cache."""
    with ScriptedServer(offered).running() as running:
        monkeypatch.setenv("DEL_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("DEL_URL", running.url)
        yield running
