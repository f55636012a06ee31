"""Fixtures that several folders share, and settings that hold for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings as hypothesis_settings

from tests.support.serving_fixtures import bundle, make_service, server, settings, table, tiny, tokenizer

__all__ = ["bundle", "make_service", "server", "settings", "table", "tiny", "tokenizer"]

# The time that one example takes says nothing on a shared machine.
hypothesis_settings.register_profile("no-deadline", deadline=None)
hypothesis_settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def _no_terminal_width() -> Iterator[None]:
    """Print as wide as into a pipe, whatever terminal runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield
