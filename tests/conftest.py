"""Fixtures that several folders share, and settings that hold for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support.serving_fixtures import bundle, make_service, server, settings, table, tiny, tokenizer

__all__ = ["bundle", "make_service", "server", "settings", "table", "tiny", "tokenizer"]

CLUSTER = Path(__file__).parent / "cluster"

# The time that one example takes says nothing on a shared machine.
hypothesis_settings.register_profile("no-deadline", deadline=None)
hypothesis_settings.load_profile("no-deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the folder cluster, and group cluster tests for `--dist loadgroup`.

    A group, which stays on one worker, is what uses the shared server, or else a file.
    """
    for item in items:
        if CLUSTER in item.path.parents:
            item.add_marker(pytest.mark.cluster)
        if item.get_closest_marker("cluster"):
            shared = "server" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("server" if shared else item.path.stem))


@pytest.fixture(scope="session", autouse=True)
def _no_terminal_width() -> Iterator[None]:
    """Print as wide as into a pipe, whatever terminal runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield
