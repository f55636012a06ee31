"""``delctl down``: stop the cluster that ``delctl up`` started."""

from __future__ import annotations

import click

from delctl.commands.up import waiting


@click.command()
@click.option("--now", is_flag=True, help="Do not finish the requests in flight.")
def down(now: bool) -> None:
    """Stop the cluster that `delctl up` started, and remove its files.

    Requests in flight are finished first. What a cluster that has crashed left behind is removed,
    too. Only processes of the cluster are ended.
    """
    from cluster.local.background import down

    with waiting("stopping"):
        record = down(drain=not now)
    click.echo("no cluster was running" if record is None else f"the cluster at {record.url} is stopped")
