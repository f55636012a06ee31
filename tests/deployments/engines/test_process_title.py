"""The engine's process names itself, whatever the order of its environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deployments.engines.vllm.startup import PRELOADED

# Forks as the replica does; the variable changes in between, as when vLLM is imported.
_SCRIPT = """
import multiprocessing, os, pathlib, sys

def rename(pipe):
    import setproctitle
    setproctitle.setproctitle("VLLM::EngineCore")
    pipe.send(pathlib.Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").decode())

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload([*sys.argv[1:], "tests.support.first_variable"])
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=rename, args=(theirs,))
    process.start()
    assert ours.poll(60)
    print(ours.recv().split(" ")[0])
    process.join()
"""


@pytest.mark.parametrize("preloaded", [PRELOADED[:1], ()], ids=["as it is", "without the module"])
def test_the_first_variable_may_change(tmp_path, preloaded):
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT, encoding="utf-8")
    environment = {"THE_FIRST": "1", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(script), *preloaded]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout.strip() == "VLLM::EngineCore") == bool(preloaded), done.stderr
