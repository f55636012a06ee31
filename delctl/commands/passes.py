"""``delctl passes``: passes that pay for requests in place of an API key."""

from __future__ import annotations

from pathlib import Path

import click

from delctl.options import (
    allow_http_option,
    api_key_option,
    gateway_key_option,
    json_option,
    relay_option,
    url_option,
)
from delctl.terminal import print_json

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def passes() -> None:
    """Get passes, which the server cannot connect with the API key that got them."""


@passes.command()
@click.argument("file", type=_FILE)
@url_option
@api_key_option
@click.option(
    "--issuer",
    required=True,
    envvar="DEL_ISSUER",
    show_envvar=True,
    metavar="HEX",
    help="The issuer's configuration, as delctl keys passes prints it, from a source that shows everybody the same.",
)
@click.option("--count", type=click.IntRange(1, 256), default=100, show_default=True, help="How many passes.")
@allow_http_option
@relay_option
@gateway_key_option
@json_option
def get(
    *,
    file: Path,
    url: str,
    api_key: str | None,
    issuer: str,
    count: int,
    allow_http: bool,
    relay: str | None,
    gateway_key: str | None,
    as_json: bool,
) -> None:
    """Get passes for an API key from a server, and add them to FILE.

    FILE is readable by its owner only. Spend the passes with --passes FILE. Get many of them at a
    time, well before they are needed: a pass that is spent a second after it was given tells whose
    it is.
    """
    from client_lib import Client
    from client_lib.passes import PassFile

    store = PassFile(file)
    store.add([])  # a file that cannot be written costs no passes
    options = {"allow_http": allow_http, "relay": relay, "gateway_key": gateway_key}
    with Client(url, api_key=api_key, max_retries=4, **options) as client:  # type: ignore[arg-type]
        store.add(client.request_passes(count, issuer=issuer))
    if as_json:
        print_json({"file": str(file), "passes": len(store)})
    else:
        click.echo(f"{len(store)} passes in {file}")


@passes.command()
@click.argument("file", type=_FILE)
@json_option
def left(file: Path, as_json: bool) -> None:
    """Print how many passes FILE has."""
    from client_lib.passes import PassFile

    count = len(PassFile(file))
    if as_json:
        print_json({"file": str(file), "passes": count})
    else:
        click.echo(count)
