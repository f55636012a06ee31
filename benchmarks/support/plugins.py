"""Plugins of this repository, found by other processes without an installation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from del_core.registry import PLUGIN_GROUP

__all__ = ["installed", "write_plugin"]

_ROOT = Path(__file__).resolve().parents[2]


def write_plugin(folder: Path, module: str) -> Path:
    """Write a distribution whose plugin is ``module``; return ``folder``, for a Python path."""
    name = module.replace(".", "_")
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[{PLUGIN_GROUP}]\n{name} = {module}\n", encoding="utf-8")
    return folder


@contextmanager
def installed(module: str) -> Iterator[None]:
    """Let all processes that start meanwhile find ``module``, of this repository, as a plugin."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory(prefix="del-plugin-") as folder:
        paths = (str(write_plugin(Path(folder), module)), str(_ROOT), *([before] if before else []))
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before
