"""The order of the test files."""

from __future__ import annotations

import pytest

# Started first, so that where files run side by side no core waits for one of them at the end.
_LONGEST = ("test_workers.py", "test_end_to_end.py", "test_privacy_utility.py", "test_engine.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; else as they were found."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)
