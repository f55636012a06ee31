"""What holds for every test of the command line."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output is as wide as into a pipe, whatever the process that runs the tests was told of its own."""
    monkeypatch.delenv("COLUMNS", raising=False)
