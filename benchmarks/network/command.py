"""The command line; it runs itself again in namespaces of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import click

from benchmarks.network.cases import CASES, run_cases
from benchmarks.network.hosts import Network, NetworkError, namespaces
from benchmarks.network.service import Plan, serving

__all__ = ["main"]

_INSIDE = "DEL_BENCHMARK_NETWORK"


@click.command()
@click.option("--replicas", default=50, show_default=True, help="Replicas with mock engines.")
@click.option("--machines", type=click.IntRange(3), default=5, show_default=True, help="Machines with replicas.")
@click.option("--clients", default=12, show_default=True, help="Clients that ask at the same time.")
@click.option("--seconds", default=30.0, show_default=True, help="Length of a case that does not end by itself.")
@click.option("--skew", "skew_s", default=3600.0, show_default=True, help="Error of two machines' clocks, in seconds.")
@click.option("--case", "chosen", type=click.Choice(list(CASES)), multiple=True, help="Only these cases.")
@click.option("--without-keep-alive", is_flag=True, help="HAProxy as Ray Serve configures it by itself.")
@click.option("--logs", type=click.Path(path_type=Path), help="Keep the machines' files here.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def main(
    replicas: int,
    machines: int,
    clients: int,
    seconds: float,
    skew_s: float,
    chosen: tuple[str, ...],
    without_keep_alive: bool,
    logs: Path | None,
    as_json: bool,
) -> None:
    """Lose, cut off and slow down simulated machines with replicas; check every answer."""
    if _INSIDE not in os.environ:
        _enter()
    plan = Plan(replicas, machines, skew_s, not without_keep_alive)
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="del-", dir=logs))
    try:
        with Network(directory) as network, serving(network, directory, plan) as service:
            started_s = round(time.monotonic() - began, 1)
            click.echo(f"started after {started_s} s", err=True)
            reports = asyncio.run(run_cases(service, chosen or tuple(CASES), clients=clients, seconds=seconds))
    except NetworkError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if logs is None:
            shutil.rmtree(directory, ignore_errors=True)
    found = {
        "replicas": replicas,
        "machines": machines,
        "clients": clients,
        "skew_s": skew_s,
        "start_s": started_s,
        "keep_alive": plan.keep_alive,
        "cases": {case: asdict(report) for case, report in reports.items()},
    }
    click.echo(json.dumps(found, indent=None if as_json else 2))


def _enter() -> NoReturn:
    """Become this command in namespaces of its own. The end of this process ends all of it."""
    probe = subprocess.run([*namespaces(), "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise click.ClickException(
            "network namespaces must be permitted, which takes root or namespaces for every user, got "
            f"{probe.stderr.strip()!r} from {' '.join(namespaces())}"
        )
    command = [*namespaces(), sys.executable, "-m", "benchmarks.network", *sys.argv[1:]]
    os.execvpe(command[0], command, {**os.environ, _INSIDE: "1"})
