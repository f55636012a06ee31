"""Fixtures that several folders share, and settings that hold for every test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support.serving_fixtures import bundle, make_service, server, settings, table, tiny, tokenizer

__all__ = ["bundle", "make_service", "server", "settings", "table", "tiny", "tokenizer"]

CLUSTER = Path(__file__).parent / "cluster"
SHARE_THE_SERVER = frozenset(
    f"tests/{name}.py"
    for name in ("benchmarks/test_fuzz", "cluster/test_faults", "cluster/test_local", "cluster/test_stack")
)
SERVER = "server"
# What takes longest begins first, so that no worker is left with it at the end.
LONGEST = (
    "tests/cluster/test_training.py",
    "tests/delctl/test_end_to_end.py",
    "tests/end_to_end/test_plugin_kinds.py",
    SERVER,
    "tests/benchmarks/test_serving.py",
    "tests/cluster/test_several_models.py",
    "tests/benchmarks/test_faults.py",
    "tests/end_to_end/test_model_families.py",
    "tests/cluster/test_draining.py",
    "tests/cluster/test_elasticity.py",
    "tests/cluster/test_telemetry.py",
)

_numbers = itertools.count()

# The time that one example takes says nothing on a shared machine.
hypothesis_settings.register_profile("no-deadline", deadline=None)
hypothesis_settings.load_profile("no-deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the folder cluster."""
    for item in items:
        if CLUSTER in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, keep the files that share the server together, the longest first.

    xdist 3.8 does this by marks (`--dist loadgroup`), but they have no effect with pytest 9.2.
    """
    if config.getoption("dist") != "loadfile":
        return None
    named = {*SHARE_THE_SERVER, *LONGEST} - {SERVER}
    if missing := sorted(name for name in named if not (config.rootpath / name).is_file()):
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {', '.join(missing)}")
    from xdist.scheduler import LoadFileScheduling

    class ServerTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return SERVER if file in SHARE_THE_SERVER else file

        def _assign_work_unit(self, node: Any) -> None:
            if first := next((scope for scope in LONGEST if scope in self.workqueue), None):
                self.workqueue.move_to_end(first, last=False)
            super()._assign_work_unit(node)

    return ServerTogether(config, log)


@pytest.fixture(scope="session", autouse=True)
def _no_terminal_width() -> Iterator[None]:
    """Print as wide as into a pipe, whatever terminal runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(autouse=True)
def _trust_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let every test begin without trusted servers: ports are used again by other tests."""
    monkeypatch.setenv("DEL_CONFIG_DIR", str(tmp_path_factory.getbasetemp() / f"trust-{next(_numbers)}"))
