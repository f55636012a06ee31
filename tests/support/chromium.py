"""Finds the browser of the tests."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

__all__ = ["chromium"]


def chromium() -> str:
    """Return the program of Chromium or Chrome; fail the test without one."""
    beside = Path(sys.executable).parent / "chromium"
    found = str(beside) if beside.is_file() else shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("Chromium is needed; scripts/install --dev installs it where it is a Debian package")
    return found
