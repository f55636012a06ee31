"""``delctl proxy`` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

DELCTL = [sys.executable, "-m", "delctl.main"]


@contextlib.contextmanager
def running_proxy(url: str, cache: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command for the server at ``url``; yield it and its URL, terminate it at the end."""
    with subprocess.Popen(
        [*DELCTL, "proxy", "--server", url, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DEL_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"},
        # A shell that starts this suite in the background has it ignore SIGINT, and children would
        # inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        try:
            own = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", own), process.communicate(timeout=30)
            yield process, own
        finally:
            process.terminate()
