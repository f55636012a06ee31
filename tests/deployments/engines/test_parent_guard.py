"""An engine's process ends when the process that started it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

PARENT = """
    import multiprocessing, os, sys, time

    def child():
        from deployments.engines.vllm.worker import watch_parent
        watch_parent()
        print(os.getpid(), flush=True)
        time.sleep(600)

    if __name__ == "__main__":
        process = multiprocessing.get_context(sys.argv[1]).Process(target=child)
        process.start()
        time.sleep(600)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_child_of_a_killed_parent_ends(tmp_path: object, method: str) -> None:
    script = f"{tmp_path}/parent.py"
    with open(script, "w", encoding="utf-8") as file:
        file.write(textwrap.dedent(PARENT))
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin"}
    parent = subprocess.Popen([sys.executable, script, method], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        child.wait(timeout=20)
    finally:
        parent.kill()
        parent.stdout.close()
        parent.wait()
