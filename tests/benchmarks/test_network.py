"""Simulated machines: no wrong answer, and no request that its caller cannot repeat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.network.cases import CASES
from benchmarks.network.hosts import namespaces

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 900.0
REPLICAS, MACHINES = 6, 3


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S)
def test_faults_of_machines_and_links_lose_no_request() -> None:
    """Where namespaces are not permitted, the command says so, and this test fails."""
    sizes = ("--replicas", str(REPLICAS), "--machines", str(MACHINES), "--clients", "6", "--seconds", "15")
    command = [sys.executable, "-m", "benchmarks.network", "--json", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert (found["replicas"], found["machines"]) == (REPLICAS, MACHINES)
    assert set(found["cases"]) == set(CASES)
    for name, case in found["cases"].items():
        assert case["succeeded"] > 0, name
        assert (case["wrong"], case["hung"], case["lost"]) == (0, 0, 0), (name, case)
    # With wrong clocks alone, and with slow links, nothing fails at all.
    assert found["cases"]["clocks"]["failed"] == {}
    assert found["cases"]["slow network"]["failed"] == {}


def test_without_namespaces_the_command_says_what_it_needs(tmp_path: Path) -> None:
    program = tmp_path / "unshare"
    program.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "benchmarks.network", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "network namespaces must be permitted" in done.stderr
    assert "Operation not permitted" in done.stderr
    assert namespaces()[0] == "unshare"
