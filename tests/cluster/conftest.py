"""The marker of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder: `make test-cluster` runs them."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.cluster)
