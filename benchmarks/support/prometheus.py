"""A Prometheus that scrapes servers of this machine for a while."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from cluster.local import free_port

__all__ = ["prometheus"]

_STARTED_WITHIN_S = 60.0


@contextmanager
def prometheus(directory: Path, targets: Sequence[str], *, every_s: int = 1) -> Iterator[str]:
    """Start a Prometheus with its files in ``directory``; yield its URL.

    Raises RuntimeError if the program is not there or does not start.
    """
    program = shutil.which("prometheus") or shutil.which("prometheus", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError(
            "prometheus is not there: scripts/install takes it from the Debian package, or install it yourself"
        )
    config = {
        "global": {"scrape_interval": f"{every_s}s"},
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config), "utf-8")  # JSON is YAML
    port = free_port()
    command = [program, f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(url)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _until_ready(url: str) -> None:
    deadline = time.monotonic() + _STARTED_WITHIN_S
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Prometheus did not start within {_STARTED_WITHIN_S:.0f} s")
