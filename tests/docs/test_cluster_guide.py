"""Every command of docs/guides/cluster.md runs, in order, as a reader would type them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.guide import ROOT, Shell, blocks


@pytest.mark.slow
def test_the_guide_as_it_stands(tmp_path: Path) -> None:
    install, *others = blocks(ROOT / "docs/guides/cluster.md")
    assert install.text == "make venv"  # makes the environment that this test runs in
    environment = {"DEL_CACHE_DIR": str(tmp_path / "cache"), "DEL_STATE_DIR": str(tmp_path / "state")}
    shell = Shell(tmp_path / "clone", environment, command_timeout_s=600.0)
    try:
        up, asked, status, logs, deployed, stopped = [shell.run(block) for block in others]
    finally:
        shell.run(blocks(ROOT / "docs/guides/cluster.md")[-1])  # nothing is left, also after a failure
    assert up.splitlines()[0].startswith("http://127.0.0.1:")
    assert asked.strip()
    assert status.count("worker") == 2
    assert "del-serve   RUNNING, 1 of 1 replicas" in status
    assert "serving bundle" in logs
    change = "del-serve: args.scaling.max_replicas: 2 -> 3 (replicas are replaced one after another)\n"
    assert deployed == change + change + "deployed\n"
    assert "is stopped" in stopped
