"""Packages that only Ray Train and Ray Serve LLM need, beside Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["python_path"]

_DIRECTORY = Path(sys.prefix) / "lib" / "workers"


def python_path(others: Iterable[str | Path] = ()) -> str:
    """Return the value of PYTHONPATH with these packages, after ``others``.

    Raises:
        FileNotFoundError: They are not installed.
    """
    if not _DIRECTORY.is_dir():
        raise FileNotFoundError(f"{_DIRECTORY} does not exist; make dev installs requirements/workers.lock there")
    return os.pathsep.join(map(str, [*others, _DIRECTORY]))
