"""``delctl down``: stop the cluster that ``delctl up`` started."""

from __future__ import annotations

import click

from delctl.commands.up import waiting
from delctl.options import json_option
from delctl.terminal import print_json


@click.command()
@click.option("--now", is_flag=True, help="Do not finish the requests in flight.")
@json_option
def down(now: bool, as_json: bool) -> None:
    """Stop the cluster that `delctl up` started, and remove its files.

    Requests in flight are finished first. What a cluster that has crashed left behind is removed,
    too. Only processes of the cluster are ended.
    """
    from cluster.local.background import down

    with waiting("stopping"):
        record = down(drain=not now)
    if as_json:
        print_json({"stopped": None if record is None else record.url})
        return
    click.echo("no cluster was running" if record is None else f"the cluster at {record.url} is stopped")
