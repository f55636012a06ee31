"""``delctl proxy``: an OpenAI-compatible server on this machine that privatises prompts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.places import PLACE, bundle_place
from delctl.terminal import console, printable

if TYPE_CHECKING:
    import socket

    from client_lib import AsyncClient
    from client_lib.ledger import Ledger
    from client_lib.policy import PrivacyPolicy
    from client_lib.proxy import ProxySettings

__all__ = ["proxy"]

DELTA = 1e-6
"""The delta at which epsilon is shown."""
POSITIVE = click.FloatRange(0, min_open=True)
SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


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
@click.option("--max-epsilon-per-token", type=POSITIVE, metavar="EPSILON", help="Policy: refuse variants above it.")
@click.option("--max-epsilon-per-prompt", type=POSITIVE, metavar="EPSILON", help="Policy: refuse prompts above it.")
@click.option("--policy-delta", type=SHARE, default=DELTA, show_default=True, help="The delta of the policy's epsilon.")
@click.option(
    "--min-audit-date",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Policy: refuse variants whose audit is older.",
)
@click.option(
    "--ledger",
    "ledger_place",
    metavar="PLACE",
    help="SQLite file, or redis:// URL, that keeps what every subject has spent; needs --budget-epsilon.",
)
@click.option("--budget-epsilon", type=POSITIVE, metavar="EPSILON", help="What a subject may spend in the window.")
@click.option("--budget-delta", type=SHARE, default=DELTA, show_default=True, help="The delta of the budget.")
@click.option(
    "--budget-days",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="The window of the budget; 0 is for ever.",
)
@click.option("--subject", help="Who a prompt is about where a request does not say (user, X-Del-Subject).")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The model's tokenizer_config.json, for its chat template.  [default: the roles' names before the messages]",
)
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
    max_epsilon_per_token: float | None,
    max_epsilon_per_prompt: float | None,
    policy_delta: float,
    min_audit_date: datetime | None,
    ledger_place: str | None,
    budget_epsilon: float | None,
    budget_delta: float,
    budget_days: float,
    subject: str | None,
    chat_template: Path | None,
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
    from client_lib.policy import PrivacyPolicy
    from client_lib.prompts.chat import ChatTemplate
    from client_lib.proxy import ProxySettings
    from client_lib.proxy.server import bind
    from del_core.net.addresses import is_loopback

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
        template=None if chat_template is None else ChatTemplate.from_tokenizer_config(chat_template),
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

    policy = PrivacyPolicy(
        max_epsilon_per_token=max_epsilon_per_token,
        max_epsilon_per_prompt=max_epsilon_per_prompt,
        delta=policy_delta,
        min_audit_date=None if min_audit_date is None else min_audit_date.date(),
    )
    with _open_ledger(ledger_place, budget_epsilon, budget_delta, budget_days) as ledger:

        async def run() -> None:
            async with AsyncClient(server, api_key=api_key, bundle=bundle, policy=policy, ledger=ledger) as client:
                await _Proxy(client, settings, policy, bind(host, port), grace).run()

        asyncio.run(run())


@contextlib.contextmanager
def _open_ledger(place: str | None, epsilon: float | None, delta: float, days: float) -> Iterator[Ledger | None]:
    """The ledger that the options describe, closed at the end; None without any."""
    from client_lib.ledger import Budget, Ledger, open_store

    if (place is None) != (epsilon is None):
        raise click.UsageError("--ledger and --budget-epsilon need each other")
    if place is None or epsilon is None:
        yield None
        return
    window = timedelta(days=days) if days else None
    ledger = Ledger(open_store(place), budget=Budget(epsilon, delta=delta, window=window))
    try:
        yield ledger
    finally:
        ledger.close()


@dataclass(frozen=True)
class _Proxy:
    """A proxy about to run: what it sends with, what it does, where it listens."""

    client: AsyncClient
    settings: ProxySettings
    policy: PrivacyPolicy
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
        from client_lib.proxy.server import url_of
        from del_core.net.addresses import is_loopback

        # Whoever starts it waits at the terminal, and may have mistyped the URL: seconds, not a minute.
        await self.client.with_options(max_retries=4).bundle()
        offered = await self._offered()
        refused = await self._refused(offered)
        url = url_of(self.bound)
        out = console()
        out.print(url, style="bold")
        out.print(f"  {'server':12} {printable(self.client.base_url)}", soft_wrap=True)
        for index, name in enumerate(offered):
            words = "no protection"
            if refused[name] is not None:
                words = f"refused: {refused[name]}"
            elif name != "clear":
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

    async def _refused(self, offered: tuple[str, ...]) -> dict[str, str | None]:
        """What the policy says against each variant. Raises UsageError if it leaves none."""
        from client_lib import PolicyViolation

        bundle = await self.client.bundle()
        refused: dict[str, str | None] = {}
        last: PolicyViolation | None = None
        for name in offered:
            try:
                self.policy.check_variant(bundle, name)
            except PolicyViolation as violation:
                refused[name] = str(violation)
                last = violation
            else:
                refused[name] = None
        if last is not None and None not in refused.values():
            raise click.UsageError(str(last)) from last
        return refused
