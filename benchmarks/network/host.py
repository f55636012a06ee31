"""The first process of a simulated machine.

    python -m benchmarks.network.host DIRECTORY COMMAND...

    standard output   a line when the namespaces are there
    standard input    a line when the network is there

DIRECTORY becomes ``/tmp``. The command is started again whenever it ends. Before that, whatever it
has left behind is killed, as systemd does with a unit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

__all__ = ["main"]

_RESTART_S = 2.0


def main() -> None:
    """Run the command until the machine is killed."""
    directory, *command = sys.argv[1:]
    subprocess.run(["mount", "--bind", directory, "/tmp"], check=True)
    os.chdir("/tmp")
    print("up", flush=True)
    if not sys.stdin.readline():
        return
    while True:
        began = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        _collect_until(began.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all but this process, in its own namespace
        time.sleep(_RESTART_S)


def _collect_until(pid: int) -> None:
    """Collect ended processes, orphans included, until this one has ended."""
    with contextlib.suppress(ChildProcessError):
        while os.wait()[0] != pid:
            pass


if __name__ == "__main__":
    main()
