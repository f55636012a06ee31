"""``delctl status``: nodes, replicas, load and versions of a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from delctl.options import json_option
from delctl.target import address_option, dashboard_of, local_record
from delctl.terminal import console, plain_table, print_json, printable

if TYPE_CHECKING:
    from rich.console import Group

    from cluster.deploy import ClusterStatus
    from cluster.local.state import ClusterRecord

_INTERVAL_S = 2.0


@click.command()
@address_option
@click.option("--watch", is_flag=True, help="Show it anew every two seconds until Ctrl-C.")
@click.option("--env", is_flag=True, help="Print the environment with which Ray's own tools reach the cluster.")
@json_option
def status(address: str | None, watch: bool, env: bool, as_json: bool) -> None:
    """Show the nodes, replicas, load and versions of a cluster.

    Without --address: of the cluster that `delctl up` started. The load is what replicas reported
    last, a few seconds ago.
    """
    if watch + env + as_json > 1:
        raise click.UsageError("--watch, --env and --json exclude each other")
    if env:
        if address is not None:
            raise click.UsageError("--env is for the cluster of delctl up, without --address")
        _print_environment(local_record())
        return
    from cluster.deploy import cluster_status
    from del_core import __version__

    url = None if address is not None else local_record().url
    with dashboard_of(address) as dashboard:
        found = cluster_status(dashboard)
        if as_json:
            values: dict[str, Any] = {"url": url, "version": __version__, **found.to_json()}
            print_json(values)
            return
        if not watch:
            console().print(_view(found, url))
            return
        from rich.live import Live

        with Live(_view(found, url), console=console(), screen=console().is_terminal) as live:
            while True:
                time.sleep(_INTERVAL_S)
                live.update(_view(cluster_status(dashboard), url), refresh=True)


def _print_environment(record: ClusterRecord) -> None:
    """Print shell commands; they hold the cluster's secret."""
    values = {
        "RAY_ADDRESS": record.gcs_address,
        "RAY_DASHBOARD_ADDRESS": record.dashboard_url,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": record.ray_token,
    }
    for name, value in values.items():
        click.echo(f"export {name}={value}")


def _view(found: ClusterStatus, url: str | None) -> Group:
    from rich.console import Group

    from del_core import __version__

    nodes = plain_table("node", "kind", "address", "cpus", "gpus", "replicas", right=("cpus", "gpus", "replicas"))
    names = {node.id: node.id[:12] for node in found.nodes}
    for node in found.nodes:
        kind = "head" if node.head else "worker"
        nodes.add_row(names[node.id], kind, node.address, f"{node.cpus:g}", f"{node.gpus:g}", str(node.replicas))
    parts: list[Any] = [f"{url or 'cluster'}   Ray {found.ray_version}, delctl {__version__}", "", nodes]
    for one in found.applications:
        head = f"{one.name}   {one.status}, {one.running} of {one.wanted} replicas, {one.tokens_per_s:.1f} tokens/s"
        parts += ["", printable(head)]
        bundle = "" if one.bundle is None else f"bundle {one.bundle}, "  # of another application, or in a file
        parts += [printable(f"  {bundle}served at {one.route_prefix}")]
        if one.message:
            parts.append(printable(f"  {one.message}"))
        replicas = plain_table(
            "replica", "state", "node", "requests", "promised tokens", "tokens/s",
            right=("requests", "promised tokens", "tokens/s"),
        )  # fmt: skip
        for replica in one.replicas:
            load = (replica.load.requests, replica.load.outstanding_tokens, replica.load.tokens_per_s)
            replicas.add_row(
                printable(replica.id),
                replica.state,
                names.get(replica.node or "", "-"),
                *("-" if value is None else f"{value:.0f}" for value in load),
            )
        parts.append(replicas)
    if not found.applications:
        parts += ["", "no application is deployed"]
    return Group(*parts)
