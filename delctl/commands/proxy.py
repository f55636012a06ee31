"""``delctl proxy``: an OpenAI-compatible server on this machine that privatizes prompts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from delctl.options import (
    DELTA,
    POSITIVE,
    SHARE,
    BudgetOptions,
    RegisteredChoice,
    TrustOptions,
    api_key_option,
    budget_options,
    bundle_option,
    grouped,
    json_option,
    listen_options,
    max_epsilon_option,
    trust_options,
    upstream_option,
)
from delctl.reaching import START_HINT, SayRetries
from delctl.terminal import console, print_json, printable

if TYPE_CHECKING:
    import socket

    from client_lib import AsyncClient
    from client_lib.policy import PrivacyPolicy
    from client_lib.proxy import ProxySettings


# With the client's pauses, 8 to 16 seconds without a server: an application waits for the answer.
_MAX_RETRIES = 5


def _alias(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    for (name, _equals, variant), value in zip(pairs, values, strict=True):
        if not name or not variant:
            raise click.BadParameter(f"must be NAME=VARIANT, such as gpt-4o=balanced, got {value!r}")
    return {name: variant for name, _, variant in pairs}


@dataclass(frozen=True)
class _Upstream:
    server: str
    api_key: str | None
    bundle: Path | None
    upstream: str


_upstream = grouped(
    "upstream",
    _Upstream,
    click.option("--server", required=True, envvar="DEL_URL", show_envvar=True, metavar="URL", help="The DEL server."),
    api_key_option,
    bundle_option,
    upstream_option,
)


@dataclass(frozen=True)
class _Listen:
    host: str
    port: int
    client_key: str | None
    grace: float


_listen = grouped(
    "listen",
    _Listen,
    listen_options(port=8081),
    click.option(
        "--client-key",
        envvar="DEL_PROXY_KEY",
        show_envvar=True,
        help="The API key that callers must send; required unless --host is a loopback address.",
    ),
)


@dataclass(frozen=True)
class _Policy:
    max_epsilon_per_token: float
    max_epsilon_per_prompt: float | None
    policy_delta: float
    min_audit_date: datetime | None


_policy = grouped(
    "limits",
    _Policy,
    max_epsilon_option,
    click.option("--max-epsilon-per-prompt", type=POSITIVE, metavar="EPSILON", help="Policy: refuse prompts above it."),
    click.option("--policy-delta", type=SHARE, default=DELTA, show_default=True, help="The delta of the policy."),
    click.option(
        "--min-audit-date", type=click.DateTime(["%Y-%m-%d"]), help="Policy: refuse variants with an older audit."
    ),
)


@click.command()
@_upstream
@trust_options
@_listen
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Offer this privacy level as a model; repeatable.  [default: all of the bundle's, not clear]",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    callback=_alias,
    metavar="NAME=VARIANT",
    help="Offer a variant under a further model name; repeatable.",
)
@click.option(
    "--default-variant",
    metavar="VARIANT",
    help="The privacy level of every other model name, such as gpt-4o.  [default: refuse other names]",
)
@click.option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages of this origin use the proxy, such as https://app.example; repeatable.",
)
@click.option("--strict-fields", is_flag=True, help="Refuse fields of a request that have no effect.")
@_policy
@click.option(
    "--ledger",
    "ledger_place",
    metavar="PLACE",
    help="SQLite file, or redis:// URL, that records each subject's spending; needs --budget-epsilon.",
)
@budget_options(required=False)
@click.option("--subject", help="The subject of prompts whose request names none (user, X-Del-Subject).")
@click.option(
    "--chat-template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The model's tokenizer_config.json, for its chat template.  [default: the bundle's]",
)
@click.option(
    "--private",
    type=click.Choice(["all", "user", "pii"]),
    default="all",
    show_default=True,
    help="What is private: all that people write, all but system messages, or only numbers, addresses and keys that "
    "detectors find. What they miss goes out in the clear.",
)
@click.option(
    "--detector",
    "detectors",
    type=RegisteredChoice("client_lib.prompts.detectors:DETECTORS"),
    multiple=True,
    help="With --private pii, find more: keys of services (extra secrets), or names of people, places and "
    "organizations in English (extra names); repeatable.",
)
@click.option(
    "--surrogates",
    is_flag=True,
    help="With --private pii, let the model refer to what is hidden by placeholders such as [EMAIL_1], and put the "
    "originals back into answers. The server learns the kind of each, and where it stands again.",
)
@click.option(
    "--show",
    is_flag=True,
    help="Show on the terminal what of every prompt is private and what goes out in the clear.",
)
@click.option("--public-system", is_flag=True, help="Send system and developer messages as public text.")
@click.option("--private-tools", is_flag=True, help="Hide the definitions of tools, too, at the cost of the budget.")
@click.option(
    "--tool-choice",
    type=click.Choice(["auto", "first"]),
    default="auto",
    show_default=True,
    help="What a request means that leaves it to the model whether it calls a tool (tool_choice auto, or none given): "
    "the model chooses, or it must call one until a tool has answered the last user message. For small models, which "
    "call nothing of their own will.",
)
@click.option(
    "--private-answers", is_flag=True, help="Hide the server's own answers from it, too, at the cost of the budget."
)
@click.option(
    "--trim-history/--no-trim-history",
    default=True,
    show_default=True,
    help="Leave the oldest turns out of a chat that the server's context does not hold, or refuse it.",
)
@click.option(
    "--chat-max-tokens",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Greatest length of an answer if a chat request names none.",
)
@click.option("--max-body-bytes", type=click.IntRange(1), default=1 << 20, show_default=True)
@click.option(
    "--remember-bytes",
    type=click.IntRange(0),
    default=64 << 20,
    show_default=True,
    help="Memory for the counts of past prompts, which are reused.",
)
@click.option("--quiet", is_flag=True, help="No line per request on stderr.")
@json_option
def proxy(
    *,
    upstream: _Upstream,
    trust: TrustOptions,
    listen: _Listen,
    limits: _Policy,
    ledger_place: str | None,
    budget: BudgetOptions,
    variants: tuple[str, ...],
    chat_template: Path | None,
    quiet: bool,
    show: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer OpenAI's API on this machine, and privatize every prompt before it leaves.

    Point an application's OpenAI client at base_url="http://127.0.0.1:8081/v1", with a privacy
    level as the model.
    """
    from client_lib import AsyncClient
    from client_lib.policy import PrivacyPolicy
    from client_lib.prompts.chat import ChatTemplate
    from client_lib.proxy import ProxySettings
    from client_lib.proxy.server import bind
    from del_core.net.addresses import is_loopback
    from delctl.chats import show_spans

    if show and not console(stderr=True).is_terminal:
        raise click.UsageError("--show needs a terminal: what it shows is the prompts, which no file should keep")
    is_local = is_loopback(listen.host)
    if not is_local and listen.client_key is None:
        raise click.UsageError(
            f"--host must be a loopback address without --client-key (or $DEL_PROXY_KEY), got {listen.host}"
        )
    template = None if chat_template is None else ChatTemplate.from_tokenizer_config(chat_template)
    if template is not None:
        template.check()
    checked = ProxySettings(
        variants=variants or None,
        client_key=listen.client_key,
        template=template,
        loopback_hosts=is_local and listen.client_key is None,
        show=(lambda spans: show_spans(spans, stderr=True)) if show else None,
        **settings,
    )
    if not quiet:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("client_lib.proxy").setLevel(logging.INFO)
    policy = PrivacyPolicy(
        max_epsilon_per_token=limits.max_epsilon_per_token,
        max_epsilon_per_prompt=limits.max_epsilon_per_prompt,
        delta=limits.policy_delta,
        min_audit_date=None if limits.min_audit_date is None else limits.min_audit_date.date(),
    )
    if (ledger_place is None) != (budget.budget_epsilon is None):
        raise click.UsageError("--ledger and --budget-epsilon need each other")
    # Without a key, anybody on this machine may ask, also whether a prompt was sent before.
    hides = listen.client_key is None
    opening = contextlib.nullcontext() if ledger_place is None else budget.ledger(ledger_place, hide_repeats=hides)
    with opening as ledger:

        async def run() -> None:
            options = trust.client_options(
                api_key=upstream.api_key,
                bundle=upstream.bundle,
                upstream=upstream.upstream,
                policy=policy,
                ledger=ledger,
                max_retries=_MAX_RETRIES,
                telemetry=None if quiet else SayRetries(upstream.server),
            )
            async with AsyncClient(upstream.server, **options) as client:
                bound = bind(listen.host, listen.port)
                await _Proxy(client, checked, policy, bound, listen.grace, as_json).run()

        asyncio.run(run())


@dataclass(frozen=True)
class _Model:
    """A name that applications may ask for; without an epsilon, it has no protection of its own."""

    name: str
    epsilon: float | None = None  # a token, at DELTA
    refused: str | None = None
    stands_for: str | None = None

    def words(self) -> str:
        if self.stands_for is not None:
            return f"stands for {self.stands_for}"
        if self.refused is not None:
            return f"refused: {self.refused}"
        return "no protection" if self.epsilon is None else f"epsilon {self.epsilon:.2f} a token at delta {DELTA:g}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "delta": None if self.epsilon is None else DELTA}


@dataclass(frozen=True)
class _Proxy:
    """A proxy about to run."""

    client: AsyncClient
    settings: ProxySettings
    policy: PrivacyPolicy
    bound: socket.socket
    grace: float
    as_json: bool

    async def run(self) -> None:
        """Announce the URL and the models, and serve until a signal.

        The proxy need not be started after its server: without one it answers 502 and waits for it.
        Raises what no waiting can cure, such as an option that the bundle contradicts.
        """
        from client_lib.proxy import create_app
        from client_lib.proxy.server import serve

        with self.bound:
            app = create_app(self.client, self.settings)
            if await self._is_reachable():
                models = await self._models()
                self._announce(models)
                await serve(app, self.bound, grace_s=self.grace)
                return
            self._announce(None)
            waits = f"The server cannot be reached yet: {START_HINT}. Waiting for it."
            console(stderr=self.as_json).print(waits, soft_wrap=True)
            serving = asyncio.ensure_future(serve(app, self.bound, grace_s=self.grace))
            waiting = asyncio.ensure_future(self._wait_for_server())
            await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
            if waiting.done() and waiting.exception() is not None:
                serving.cancel()
                await asyncio.wait((serving,))
                waiting.result()
            await serving
            waiting.cancel()

    async def _is_reachable(self) -> bool:
        """Return whether the server answers. Raises what a retry cannot cure."""
        from client_lib.errors import DELClientError
        from client_lib.protocol.retry import is_temporary

        try:
            await self.client.with_options(max_retries=0, telemetry=None).bundle()
        except DELClientError as error:
            if not is_temporary(error):
                raise
            return False
        return True

    async def _wait_for_server(self) -> None:
        pause_s = 0.5
        while not await self._is_reachable():
            await asyncio.sleep(pause_s)
            pause_s = min(5.0, 1.5 * pause_s)
        models = await self._models()
        if not self.as_json:
            self._announce_models(models)

    def _announce(self, models: list[_Model] | None) -> None:
        """Print where the proxy listens and what it offers; None before the server is reached."""
        from client_lib.proxy.server import url_of

        if self.as_json:
            offered = None if models is None else [one.to_json() for one in models]
            print_json({"url": url_of(self.bound), "server": self.client.base_url, "models": offered})
            return
        self._announce_address()
        if models is not None:
            self._announce_models(models)

    def _announce_address(self) -> None:
        from client_lib.proxy.server import url_of
        from del_core.net.addresses import is_loopback

        url, out = url_of(self.bound), console()
        out.print(url, style="bold")
        out.print(f"  {'server':12} {printable(self.client.base_url)}", soft_wrap=True)
        if not is_loopback(self.bound.getsockname()[0]):
            out.print(
                "Warning: other machines can reach this address; their requests are not encrypted.", style="bold red"
            )

    async def _models(self) -> list[_Model]:
        """Return what is offered.

        Raises UsageError or BadParameter if the settings do not fit the bundle.
        """
        from client_lib.prompts.spans import CLEAR

        await self._check_template()
        offered = await self._offered()
        refused = await self._refused(offered)
        models = []
        for name in offered:
            protected = name != CLEAR and refused[name] is None
            epsilon = await self.client.epsilon(name, delta=DELTA) if protected else None
            models.append(_Model(name, epsilon, refused=refused[name]))
        return models + [_Model(name, stands_for=variant) for name, variant in self.settings.aliases.items()]

    def _announce_models(self, models: list[_Model]) -> None:
        from client_lib.proxy.server import url_of

        out = console()
        for index, one in enumerate(models):
            out.print(f"  {'' if index else 'models':12} {printable(one.name):12} {one.words()}")
        out.print(f'Try: OpenAI(base_url="{url_of(self.bound)}/v1", api_key="...")', soft_wrap=True)
        out.print("Stop with Ctrl-C.")

    async def _check_template(self) -> None:
        """Render a test chat. Raises UsageError if the bundle's template cannot be used."""
        from client_lib import ChatTemplate, InvalidRequestError

        chat = (await self.client.bundle()).manifest.chat
        if chat is None or self.settings.template is not None:
            return
        try:
            ChatTemplate.of(chat).check()
        except InvalidRequestError as error:
            raise click.UsageError(f"the bundle's chat template: {error}; --chat-template replaces it") from None

    async def _offered(self) -> tuple[str, ...]:
        """Return the offered variants. Raises BadParameter for one that the bundle lacks."""
        from client_lib.prompts.spans import CLEAR

        known = (*await self.client.variants(), CLEAR)
        for option, names in (("--variant", self.settings.variants or ()), ("--alias", self.settings.aliases.values())):
            for name in names:
                if name not in known:
                    raise click.BadParameter(f"must be one of {', '.join(known)}, got {name!r}", param_hint=option)
        offered = self.settings.variants or known[:-1]
        for name in self.settings.aliases.values():
            if name not in offered:
                raise click.BadParameter(
                    f"must be one of the offered {', '.join(offered)}, got {name!r}", param_hint="--alias"
                )
        default = self.settings.default_variant
        if default is not None and default not in offered:
            wanted = f"one of the offered {', '.join(offered)}"
            raise click.BadParameter(f"must be {wanted}, got {default!r}", param_hint="--default-variant")
        return offered

    async def _refused(self, offered: tuple[str, ...]) -> dict[str, str | None]:
        """Return the policy's objection to each variant. Raises UsageError if none is left."""
        from client_lib import PolicyViolationError

        bundle = await self.client.bundle()
        refused: dict[str, str | None] = dict.fromkeys(offered)
        for name in offered:
            try:
                self.policy.check_variant(bundle, name)
            except PolicyViolationError as violation:
                refused[name] = str(violation)
        if offered and None not in refused.values():
            raise click.UsageError(str(refused[offered[-1]]))
        return refused
