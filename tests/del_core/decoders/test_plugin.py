"""A decoder kind from outside the packages is trained, bundled, audited and served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from del_core.decoders import DECODERS
from tests.support.toys import ToyDecoderKind, install_plugin


def test_a_plugin_adds_a_decoder_to_every_part(tmp_path: Path) -> None:
    plugin, root = install_plugin(tmp_path / "site", "register_decoder"), Path(__file__).resolve().parents[3]
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.toy_decoder_run", str(work)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(plugin), str(root)))},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert ToyDecoderKind.name not in DECODERS, "this process has no plugin"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["decoder"] == ToyDecoderKind.name
    assert found["gain"] > 0.0
    assert found["multiplications"] == (64 + 1) * 16
    assert {"nearest", "map", "sequence", "data"} <= set(found["audited"])
    assert found["difference"] < 1e-4
