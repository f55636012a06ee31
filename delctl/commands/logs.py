"""``delctl logs``: what the local cluster logs."""

from __future__ import annotations

import re
from pathlib import Path

import click

from delctl.options import json_option
from delctl.target import local_record
from delctl.terminal import print_json, printable

_PARTS = ("supervisor", "serve", "replicas", "nodes")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines until Ctrl-C or the cluster's end.")
@click.option("--lines", "-n", type=click.IntRange(0), default=10, show_default=True, help="Last lines of each file.")
@click.option(
    "--part",
    "parts",
    type=click.Choice(_PARTS),
    multiple=True,
    help="Whose logs: replicas alone, all of Serve, Ray's nodes.  [default: supervisor and serve]",
)
@json_option
def logs(follow: bool, lines: int, parts: tuple[str, ...], as_json: bool) -> None:
    """Print the logs of the cluster that `delctl up` started.

    Each line begins with the name of its file. Logs hold nothing that derives from a prompt.
    """
    if follow and as_json:
        raise click.UsageError("--follow and --json exclude each other")
    from cluster.local import logs as files

    record = local_record()
    directory, chosen = Path(record.directory), parts or files.DEFAULT_PARTS
    found = [(path, line) for path in files.log_files(directory, chosen) for line in files.last_lines(path, lines)]
    if as_json:
        print_json({"lines": [{"file": str(path.relative_to(directory)), "text": line} for path, line in found]})
        return
    for path, line in found:
        _print(path, line)
    if follow:
        for path, line in files.follow(directory, chosen, lambda: record.keeper.alive):
            _print(path, line)


def _print(path: Path, line: str) -> None:
    name = re.sub(r"^(replica|controller|proxy)_", r"\1 ", path.stem)
    click.echo(f"{name} | {printable(line)}")
