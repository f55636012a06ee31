"""``delctl proxy``: an OpenAI-compatible server on this machine that privatises prompts."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl._places import PLACE, bundle_place
from delctl._terminal import console, printable

if TYPE_CHECKING:
    import socket

    from client_lib import AsyncClient
    from client_lib.proxy import ProxySettings

__all__ = ["proxy"]

DELTA = 1e-6
"""The delta at which epsilon is shown."""


def _alias(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for (name, _equals, variant), value in zip(pairs, values, strict=True):
        if not name or not variant:
            raise click.BadParameter(f"{value!r}; allowed: NAME=VARIANT, such as gpt-4o=balanced")
    return {name: variant for name, _, variant in pairs}


@click.command()
@click.option("--server", required=True, envvar="DEL_URL", show_envvar=True, metavar="URL", help="The DEL server.")
@click.option("--api-key", envvar="DEL_API_KEY", show_envvar=True, help="Sent to the server as a bearer token.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 takes a free port.")
@click.option(
    "--client-key",
    envvar="DEL_PROXY_KEY",
    show_envvar=True,
    help="What callers of the proxy must send as their API key; needed for a host that other machines can reach.",
)
@click.option(
    "--bundle", type=bundle_place, metavar=PLACE, help="Use this bundle's client part instead of fetching the server's."
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Offer this privacy level as a model; may be given several times.  [default: all of the bundle's, not clear]",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    callback=_alias,
    metavar="NAME=VARIANT",
    help="Offer a variant under a further model name; may be given several times.",
)
@click.option("--subject", help="Who a prompt is about where a request does not say (user, X-Del-Subject).")
@click.option("--public-system", is_flag=True, help="Send system and developer messages as public text.")
@click.option(
    "--chat-max-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Length of an answer where a chat request names none.",
)
@click.option("--max-body-bytes", type=click.IntRange(1), default=1 << 20, show_default=True)
@click.option(
    "--remember-bytes",
    type=click.IntRange(0),
    default=64 << 20,
    show_default=True,
    help="Memory for the counts of past prompts, which are sent again as they were.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long answers under way may take after SIGTERM.",
)
@click.option("--quiet", is_flag=True, help="No line for every request on stderr.")
def proxy(
    server: str,
    api_key: str | None,
    host: str,
    port: int,
    client_key: str | None,
    bundle: Path | None,
    variants: tuple[str, ...],
    aliases: dict[str, str],
    subject: str | None,
    public_system: bool,
    chat_max_tokens: int,
    max_body_bytes: int,
    remember_bytes: int,
    grace: float,
    quiet: bool,
) -> None:
    """Answer OpenAI's API on this machine, and privatise every prompt before it leaves.

    Point an application's OpenAI client at it: base_url="http://127.0.0.1:8081/v1", and a privacy level as the model.
    """
    from client_lib import AsyncClient
    from client_lib.proxy import ProxySettings
    from client_lib.proxy.server import bind, is_loopback

    if not is_loopback(host) and client_key is None:
        raise click.UsageError(
            f"--host {host} can be reached from other machines; allowed: with --client-key (or $DEL_PROXY_KEY), or a "
            "loopback address"
        )
    settings = ProxySettings(
        variants=variants or None,
        aliases=aliases,
        client_key=client_key,
        subject=subject,
        public_system=public_system,
        chat_max_tokens=chat_max_tokens,
        max_body_bytes=max_body_bytes,
        remember_bytes=remember_bytes,
        loopback_hosts=is_loopback(host) and client_key is None,
    )
    if not quiet:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("client_lib.proxy").setLevel(logging.INFO)
    if bundle is not None and (bundle / "client").is_dir():
        bundle = bundle / "client"

    async def run() -> None:
        async with AsyncClient(server, api_key=api_key, bundle=bundle) as client:
            await _Proxy(client, settings, bind(host, port), grace).run()

    asyncio.run(run())


@dataclass(frozen=True)
class _Proxy:
    """A proxy about to run: what it sends with, what it does, where it listens."""

    client: AsyncClient
    settings: ProxySettings
    bound: socket.socket
    grace: float

    async def run(self) -> None:
        """Check the settings against the bundle, say where it is, and serve until a signal."""
        from client_lib.proxy import create_app
        from client_lib.proxy.server import serve

        with self.bound:
            await self._announce()
            await serve(create_app(self.client, self.settings), self.bound, grace_s=self.grace)

    async def _announce(self) -> None:
        from client_lib.proxy.server import is_loopback, url_of

        offered = await self._offered()
        url = url_of(self.bound)
        out = console()
        out.print(url, style="bold")
        out.print(f"  {'server':12} {printable(self.client.base_url)}", soft_wrap=True)
        for index, name in enumerate(offered):
            words = "no protection"
            if name != "clear":
                words = f"epsilon {await self.client.epsilon(name, delta=DELTA):.2f} a token at delta {DELTA:g}"
            out.print(f"  {'' if index else 'models':12} {name:12} {words}")
        for name, variant in self.settings.aliases.items():
            out.print(f"  {'':12} {printable(name):12} stands for {variant}")
        if not is_loopback(self.bound.getsockname()[0]):
            out.print(
                "Attention: other machines can reach this; what they send here is not encrypted.", style="bold red"
            )
        out.print(f'Try: OpenAI(base_url="{url}/v1", api_key="...")', soft_wrap=True)
        out.print("Stop with Ctrl-C.")

    async def _offered(self) -> tuple[str, ...]:
        """The variants offered. Raises BadParameter for one that the bundle does not have."""
        known = (*await self.client.variants(), "clear")
        for option, names in (("--variant", self.settings.variants or ()), ("--alias", self.settings.aliases.values())):
            for name in names:
                if name not in known:
                    raise click.BadParameter(f"{name!r}; allowed: {', '.join(known)}", param_hint=option)
        offered = self.settings.variants or known[:-1]
        for name in self.settings.aliases.values():
            if name not in offered:
                raise click.BadParameter(
                    f"{name!r} is not offered; allowed: {', '.join(offered)}", param_hint="--alias"
                )
        return offered
