"""``delctl relay``: a relay of Oblivious HTTP in front of one server's gateway."""

from __future__ import annotations

import asyncio

import click

from delctl.options import allow_http_option, json_option, listen_options
from delctl.terminal import console, print_json, printable


@click.command()
@click.option(
    "--gateway", required=True, metavar="URL", help="The server whose gateway takes the requests, as clients name it."
)
@listen_options(port=8082)
@click.option(
    "--max-requests",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests at once; others are answered 503.",
)
@allow_http_option
@json_option
def relay(
    *, gateway: str, host: str, port: int, max_requests: int, grace: float, allow_http: bool, as_json: bool
) -> None:
    """Pass encapsulated requests on to a server, and nothing that tells callers apart.

    The relay hides from the server where requests come from, unless the same people run both. It
    cannot read them. Clients use it with --relay and --gateway-key.
    """
    from client_lib.proxy.server import bind, serve, url_of
    from client_lib.relay import Relay, RelaySettings, gateway_url

    url = gateway_url(gateway, allow_http=allow_http)
    settings = RelaySettings(max_requests=max_requests)

    async def run() -> None:
        relaying = Relay(url, settings)
        try:
            with bind(host, port) as bound:
                if as_json:
                    print_json({"url": url_of(bound), "gateway": url})
                else:
                    out = console()
                    out.print(url_of(bound), style="bold")
                    out.print(f"  {'gateway':12} {printable(url)}", soft_wrap=True)
                await serve(relaying.app, bound, grace_s=grace)
        finally:
            await relaying.close()

    asyncio.run(run())
