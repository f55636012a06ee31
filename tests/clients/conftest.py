"""Fixtures of the TypeScript client's tests: the built package, a bundle and a scripted server."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from del_core.bundle import ClientBundle
from tests.support.bundle import make_bundle
from tests.support.scripted_server import ScriptedServer
from tests.support.typescript import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled package, the programs of its tests, and the example; once for all workers."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with open(root / "typescript.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = root / "typescript" / "done"
        if not done.exists():
            shutil.rmtree(done.parent, ignore_errors=True)
            build(done.parent)
            done.touch()
    return done.parent


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ClientBundle:
    """The bundle that servers hand out unless a test says otherwise."""
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def server(bundle: ClientBundle) -> Iterator[ScriptedServer]:
    """A server that answers as scripted."""
    with ScriptedServer(bundle).running() as running:
        yield running
