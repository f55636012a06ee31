"""``delctl playground``: a page on this machine that shows what a private prompt becomes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from delctl.options import DEFAULT_URL, TrustOptions, api_key_option, json_option, trust_options
from delctl.reaching import SayRetries, hint_at_start
from delctl.terminal import console, print_json, printable

if TYPE_CHECKING:
    from client_lib import AsyncClient
    from delctl.playground.app import Shown

_MAX_RETRIES = 3
_GRACE_S = 5.0


@click.command()
@click.option(
    "--server",
    default=DEFAULT_URL,
    show_default=True,
    envvar="DEL_URL",
    show_envvar=True,
    metavar="URL",
    help="The DEL server.",
)
@api_key_option
@trust_options
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="0 takes a free port.")
@json_option
def playground(*, server: str, api_key: str | None, trust: TrustOptions, port: int, as_json: bool) -> None:
    """Serve a page that shows what leaves the device, what can be read of it, and the answer.

    The page draws the noise in the browser. It is for this machine only. What is typed leaves it in
    the clear only if the page is told to ask with the clear text, too.

    Example: delctl playground --server http://127.0.0.1:8000 --port 8090
    """
    if any(option is not None for option in (trust.relay, trust.gateway_key, trust.passes)):
        raise click.UsageError(
            "--relay, --gateway-key and --passes must not be given: frames go straight to the server"
        )

    from client_lib import AsyncClient
    from client_lib.proxy.server import bind, serve, url_of
    from delctl.playground.app import Playground

    async def run() -> None:
        options = trust.client_options(api_key=api_key, max_retries=_MAX_RETRIES, telemetry=SayRetries(server))
        async with AsyncClient(server, **options) as client:
            with hint_at_start(server):
                shown = await _shown(client, api_key)
        page = Playground(shown)
        try:
            with bind("127.0.0.1", port) as bound:
                if as_json:
                    print_json({"url": url_of(bound), "server": shown.server})
                else:
                    out = console()
                    out.print(url_of(bound), style="bold")
                    out.print(f"  {'server':12} {printable(shown.server)}", soft_wrap=True)
                    out.print("Stop with Ctrl-C.")
                await serve(page.app, bound, grace_s=_GRACE_S)
        finally:
            await page.close()

    asyncio.run(run())


async def _shown(client: AsyncClient, api_key: str | None) -> Shown:
    """Fetch and verify what the page shows."""
    from del_core.bundle import pack_client
    from delctl.playground.app import Shown

    bundle = await client.bundle()
    lengths = [model.context_length for model in await client.models() if model.context_length is not None]
    return Shown(
        server=client.base_url,
        fingerprint=bundle.fingerprint,
        archive=await asyncio.to_thread(pack_client, bundle.path),
        context_length=min(lengths, default=None),
        chat=None if bundle.manifest.chat is None else await _chat(client, bundle.manifest.chat.end_token_ids),
        log_prior=await asyncio.to_thread(_log_prior, bundle.fingerprint),
        api_key=api_key,
    )


async def _chat(client: AsyncClient, end_token_ids: tuple[int, ...]) -> dict[str, Any]:
    """Return what the bundle's template writes around one message of the user."""
    from client_lib import Message, private

    variant = next(iter(await client.variants()))
    spans = await client.spans([Message("user", private("?"))], variant=variant)
    (place,) = [index for index, span in enumerate(spans) if span.is_private]
    before, after = ("".join(span.text for span in part) for part in (spans[:place], spans[place + 1 :]))
    return {"before": before, "after": after, "end_token_ids": list(end_token_ids)}


def _log_prior(fingerprint: str) -> bytes | None:
    """Return the frequencies of the tokens if the bundle is one that ships with this distribution.

    They are in the server's part, which clients do not get; every attacker has such figures.
    """
    from safetensors.numpy import load_file

    from del_core import demo
    from del_core.bundle import load_client
    from del_core.bundle.manifest import PRIOR

    for path in (demo.bundle_path(), demo.smollm2_bundle_path()):
        if load_client(path / "client").fingerprint == fingerprint:
            return load_file(path / "server" / PRIOR)["log_prior"].astype("<f4").tobytes()
    return None
