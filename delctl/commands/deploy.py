"""``delctl deploy``: deploy a Serve config file to a Ray cluster, or say what would change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.commands.up import waiting
from delctl.options import POSITIVE, json_option
from delctl.target import address_option, dashboard_of, local_record
from delctl.terminal import console, print_json, printable

if TYPE_CHECKING:
    from cluster.deploy import Change


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@address_option
@click.option("--check", is_flag=True, help="Only say what would change.")
@click.option(
    "--timeout", "timeout_s", type=POSITIVE, default=600.0, show_default=True, metavar="SECONDS", help="Longest wait."
)
@json_option
def deploy(config: Path, address: str | None, check: bool, timeout_s: float, as_json: bool) -> None:
    """Deploy CONFIG, a Serve config file, and wait until it runs.

    The cluster replaces what has changed, replica by replica: a new one answers before an old one
    stops, which finishes its requests first. No stream is dropped. If the new settings do not
    start, the old replicas go on. Applications that CONFIG does not name stop.

    With --address, CONFIG goes to the cluster as it is, as `serve deploy` sends it; its paths are
    those of the nodes. For the local cluster, paths are relative to CONFIG.
    """
    from cluster.deploy import changes, deploy

    wanted = _config(config, address)
    with dashboard_of(address) as dashboard:
        found = changes(dashboard.serve_details(), wanted)
        if not as_json:
            _print(found)
        if not check:
            with waiting("deploying"):
                deploy(dashboard, wanted, timeout_s=timeout_s)
    if as_json:
        print_json({"deployed": not check, "changes": [one.to_json() for one in found]})
    elif not check:
        click.echo("deployed")


def _config(path: Path, address: str | None) -> dict[str, Any]:
    from cluster.deploy import read_config

    if address is not None:
        return read_config(path)
    from cluster.local.background import local_config
    from cluster.local.nodes import LOOPBACK
    from cluster.local.server import check_applications
    from deployments.settings import as_applications, load_config

    record = local_record()
    served = check_applications(as_applications(load_config(path)), LOOPBACK)
    return local_config(served, record.http_options)


def _print(found: list[Change]) -> None:
    out = console()
    if not found:
        out.print("nothing changes")
    for one in found:
        where = "cluster" if one.application is None else one.application
        if one.field:
            before, after = (json.dumps(value) for value in (one.before, one.after))
            text = f"{where}: {one.field}: {before} -> {after} ({one.effect})"
        else:
            text = f"{where}: {one.effect}"
        out.print(printable(text), soft_wrap=True)
