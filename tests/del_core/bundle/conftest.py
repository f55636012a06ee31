"""Fixtures of the bundle's tests: a written bundle, and a copy that a test may destroy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from del_core.bundle import write_bundle
from tests.support.core_bundles import content


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "original"
    write_bundle(path, **content())
    return path


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A bundle that the test may destroy."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))
