"""The cluster that a command is about: the local one, or the one at an address."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cluster.deploy import Dashboard
    from cluster.local.state import ClusterRecord

address_option = click.option(
    "--address",
    envvar="RAY_DASHBOARD_ADDRESS",
    show_envvar=True,
    metavar="URL",
    help="Dashboard of a Ray cluster, with its token in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.  "
    "[default: the cluster of delctl up]",
)


def local_record() -> ClusterRecord:
    """Return the running local cluster. Raises ClickException if there is none yet."""
    from cluster.local.background import running_cluster

    record = running_cluster()
    if record is None:
        raise click.ClickException("no cluster is running; start one with: delctl up")
    if record.phase != "running":
        raise click.ClickException(f"the cluster is starting; its logs are in {record.directory}")
    return record


def dashboard_of(address: str | None) -> Dashboard:
    """Return a connection to the dashboard at an address, or to that of the local cluster."""
    from cluster.deploy import Dashboard, token_from_environment

    if address is not None:
        return Dashboard(address, token_from_environment())
    record = local_record()
    return Dashboard(record.dashboard_url, record.ray_token)
