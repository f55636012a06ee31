"""Fixtures of the proxy's tests: a scripted server, and proxies with any settings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_lib import RetryPolicy
from client_lib.proxy import ProxySettings
from del_core.bundle import ClientBundle
from tests.support.bundle import make_bundle
from tests.support.running_proxy import RunningProxy
from tests.support.scripted_server import ScriptedServer

MakeProxy = Callable[..., RunningProxy]


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ClientBundle:
    """The bundle that the server hands out; its variants are named strict and open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # it need not outlive a power cut
        return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def server(bundle: ClientBundle) -> Iterator[ScriptedServer]:
    with ScriptedServer(bundle).running() as running:
        yield running


@pytest.fixture
def make_proxy(server: ScriptedServer, tmp_path: Path) -> Iterator[MakeProxy]:
    """Make proxies of the server; ``client`` holds client options, the rest are settings."""
    with contextlib.ExitStack() as stack:

        def make(client: dict[str, Any] | None = None, **settings: Any) -> RunningProxy:
            retry = RetryPolicy(first_pause=0.001)
            options = {"cache_dir": tmp_path / "cache", "retry": retry, **(client or {})}
            return stack.enter_context(RunningProxy(server.url, ProxySettings(**settings), **options).running())

        yield make


@pytest.fixture
def proxy(make_proxy: MakeProxy) -> RunningProxy:
    """A proxy with the default settings."""
    return make_proxy()
