"""``delctl up``: a Ray cluster on this machine in the background, and the application on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from delctl.commands.serve import resolve_served
from delctl.options import POSITIVE, grouped, json_option
from delctl.places import PLACE, bundle_place, model_place
from delctl.terminal import console, print_json


@dataclass(frozen=True)
class NodeOptions:
    """The nodes as the options describe them."""

    nodes: int
    max_nodes: int | None
    idle_timeout_s: float | None
    cpus: int | None


_node_options = grouped(
    "size",
    NodeOptions,
    click.option("--nodes", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N", help="Ray nodes."),
    click.option("--max-nodes", type=click.IntRange(1, 64), metavar="N", help="Add nodes with the load, up to N."),
    click.option(
        "--idle-timeout",
        "idle_timeout_s",
        type=POSITIVE,
        metavar="SECONDS",
        help="With --max-nodes: remove a node without replicas after this time.  [default: 60]",
    ),
    click.option(
        "--cpus",
        type=click.IntRange(1),
        metavar="N",
        help="CPUs that each node declares to Ray, which only counts them.  [default: what the applications need]",
    ),
)


@click.command()
@_node_options
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of settings, or a Serve config file of several applications.  [default: the demo]",
)
@click.option("--bundle", type=bundle_place, metavar=PLACE, help="The bundle to serve, instead of --config.")
@click.option("--model", type=model_place, metavar=PLACE, help="Its base model.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free port.")
@click.option(
    "--proxy",
    type=click.Choice(["auto", "haproxy", "serve"]),
    default="auto",
    show_default=True,
    help="HTTP proxy in front, as for delctl serve.",
)
@json_option
def up(
    size: NodeOptions,
    config: Path | None,
    bundle: Path | None,
    model: Path | None,
    port: int,
    proxy: Literal["auto", "haproxy", "serve"],
    as_json: bool,
) -> None:
    """Start a Ray cluster on this machine, in the background, and serve on it.

    Every node is a Ray node of its own, with its processes and declared resources. The cluster
    listens on loopback only and runs until `delctl down`. Look at it with `delctl status` and
    `delctl logs`, change what it serves with `delctl deploy`.
    """
    from cluster.local.background import UpOptions, up
    from cluster.local.nodes import IDLE_TIMEOUT_S

    nodes = size.nodes
    if size.max_nodes is not None and size.max_nodes < nodes:
        raise click.UsageError(f"--max-nodes must be at least --nodes, which is {nodes}, got {size.max_nodes}")
    idle_timeout_s = size.idle_timeout_s
    if idle_timeout_s is not None and size.max_nodes in (None, nodes):
        raise click.UsageError("--idle-timeout needs --max-nodes above --nodes: other nodes are never removed")
    served = resolve_served(bundle, model, config, None, None)
    options = UpOptions(nodes, size.max_nodes, size.cpus, idle_timeout_s or IDLE_TIMEOUT_S, port, proxy)
    with waiting(f"starting {nodes} Ray node{'s' if nodes > 1 else ''} and the application, about a minute"):
        record = up(served, options)
    if as_json:
        print_json({"url": record.url, "dashboard": record.dashboard_url, "logs": str(record.directory)})
        return
    out = console()
    out.print(record.url, style="bold")
    for name, value in {"dashboard": record.dashboard_url, "logs": record.directory}.items():
        out.print(f"  {name:12} {value}", soft_wrap=True)
    out.print("Look at it with delctl status; stop it with delctl down.", soft_wrap=True)


@contextlib.contextmanager
def waiting(words: str) -> Iterator[None]:
    """Show on stderr what a command waits for."""
    messages = console(stderr=True)
    with messages.status(words):
        if not messages.is_terminal:
            messages.print(words)
        yield
