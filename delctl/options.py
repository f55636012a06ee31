"""Command-line options that several commands share, each declared once."""

from __future__ import annotations

import contextlib
import functools
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

import click

from del_core.mechanism.base import DEFAULT_DELTA, MAX_EPSILON_PER_TOKEN
from delctl.places import PLACE, bundle_place

if TYPE_CHECKING:
    from client_lib import ClientOptions
    from client_lib.ledger import Ledger

F = TypeVar("F", bound=Callable[..., Any])

DELTA = DEFAULT_DELTA
"""The default delta, and the delta of the epsilons that commands show."""
DEFAULT_URL = "http://127.0.0.1:8000"


class FiniteRange(click.FloatRange):
    """A range of finite numbers: nan is neither below a limit nor above it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"must be a finite number, got {value}", param, ctx)
        return found


POSITIVE = FiniteRange(0, min_open=True)
SHARE = FiniteRange(0, 1, min_open=True, max_open=True)
TOP_P = FiniteRange(0, 1, min_open=True)


class TextFile(click.ParamType[Path]):
    """A UTF-8 text file, refused before any package is loaded if it is not there or is empty."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.is_dir():
            self.fail(f"text file must be a file, got the directory {path}", param, ctx)
        if not path.exists():
            self.fail(f"text file must exist, got {path}", param, ctx)
        if not path.stat().st_size:
            self.fail(f"text file must not be empty, got {path}", param, ctx)
        return path


TEXT_FILE = TextFile()


class BudgetType(click.ParamType[str]):
    """An attacker's budget, checked when the options are read."""

    name = "budget"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "PRESET[,KEY=NUMBER...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from del_core.audit.settings import parse_budget

        try:
            parse_budget(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


BUDGET = BudgetType()


class RegisteredChoice(click.ParamType[str]):
    """A choice among a registry's names, imported only when a command runs or prints its help.

    ``registry`` is ``module:name`` of the names or of a function that returns them.
    """

    name = "choice"

    def __init__(self, registry: str, *more: str) -> None:
        self.registry, self.more = registry, more

    def _names(self) -> list[str]:
        found = pkgutil.resolve_name(self.registry)
        return [*(found() if callable(found) else found), *self.more]

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(self._names())}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        chosen: str = click.Choice(self._names()).convert(value, param, ctx)
        return chosen


threads_option = click.option(
    "--threads",
    type=click.IntRange(1),
    expose_value=False,
    metavar="N",
    help="Threads that compute.  [default: OMP_NUM_THREADS, or 1, since more wait for each other beside other work]",
)

api_key_option = click.option(
    "--api-key", envvar="DEL_API_KEY", show_envvar=True, help="Sent to the server as a bearer token."
)
url_option = click.option(
    "--url", default=DEFAULT_URL, show_default=True, envvar="DEL_URL", show_envvar=True, help="The server."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
always_json_option = click.option(
    "--json", is_flag=True, expose_value=False, help="Print one JSON document, as without this option."
)
"""For a command whose output is JSON in any case."""
bundle_option = click.option(
    "--bundle", type=bundle_place, metavar=PLACE, help="Use this bundle's client part instead of the server's."
)
upstream_option = click.option(
    "--upstream",
    type=click.Choice(["del", "openai"]),
    default="del",
    show_default=True,
    help="What the server is; openai is one of OpenAI's API with a model of delctl export, and needs --bundle.",
)


def grouped(parameter: str, kind: type[Any], *options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options and passes their values as one ``kind``, a dataclass."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def called(**values: Any) -> Any:
            own = {field.name: values.pop(field.name) for field in fields(kind)}
            return command(**values, **{parameter: kind(**own)})

        return together(*options)(cast(F, called))

    return decorate


def listen_options(port: int) -> Callable[[F], F]:
    """Return a decorator with the options of a command that answers requests until SIGTERM."""
    return together(
        click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, show_default=True, help="0 takes a free port."
        ),
        click.option(
            "--grace",
            type=FiniteRange(0),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="How long running requests may take after SIGTERM.",
        ),
    )


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that adds the options in this order."""
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


@dataclass(frozen=True)
class TrustOptions:
    """What a command demands of its server, and what it shows of its caller."""

    fingerprint: str | None
    accept: tuple[str, ...]
    trusted_keys: tuple[str, ...]
    allow_http: bool
    relay: str | None
    gateway_key: str | None
    passes: Path | None

    def client_options(self, **others: Unpack[ClientOptions]) -> ClientOptions:
        """Return them as options of a client, with the command's other ones.

        With passes, a key of the environment is not used: it bought them, and would name the
        caller. One that is given beside passes is refused.
        """
        source = click.get_current_context().get_parameter_source("api_key")
        if self.passes is not None and source is click.core.ParameterSource.ENVIRONMENT:
            others["api_key"] = None
        return {
            **others,
            "fingerprint": self.fingerprint,
            "accept": self.accept,
            "trusted_keys": self.trusted_keys,
            "allow_http": self.allow_http,
            "relay": self.relay,
            "gateway_key": self.gateway_key,
            "passes": self.passes,
        }


allow_http_option = click.option(
    "--allow-http",
    is_flag=True,
    envvar="DEL_ALLOW_HTTP",
    show_envvar=True,
    help="Permit plain http to another machine; anybody on the way can change it.",
)
relay_option = click.option(
    "--relay",
    envvar="DEL_RELAY",
    show_envvar=True,
    metavar="URL",
    help="Send everything through this relay of Oblivious HTTP; needs --gateway-key and the extra ohttp.",
)
gateway_key_option = click.option(
    "--gateway-key",
    envvar="DEL_GATEWAY_KEY",
    show_envvar=True,
    metavar="HEX",
    help="The key configuration of the server's gateway, from a source that you trust: encrypts requests and "
    "answers between this machine and the replica, also without a relay.",
)
trust_options = grouped(
    "trust",
    TrustOptions,
    click.option("--fingerprint", metavar="HEX", help="The only bundle to use, by its fingerprint."),
    click.option(
        "--accept",
        multiple=True,
        metavar="HEX",
        help="Accept this bundle, by its fingerprint, though it differs from what was accepted; repeatable.",
    ),
    click.option(
        "--trusted-key",
        "trusted_keys",
        multiple=True,
        metavar="HEX",
        help="Refuse bundles that this public key did not sign; repeatable. Needs the extra signing.",
    ),
    allow_http_option,
    relay_option,
    gateway_key_option,
    click.option(
        "--passes",
        envvar="DEL_PASSES",
        show_envvar=True,
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Pay for completions with passes (delctl passes get) in place of an API key. Needs the extra passes.",
    ),
)


max_epsilon_option = click.option(
    "--max-epsilon-per-token",
    type=POSITIVE,
    default=MAX_EPSILON_PER_TOKEN,
    show_default=True,
    metavar="EPSILON",
    help="Policy: refuse variants above it.",
)


@dataclass(frozen=True)
class BudgetOptions:
    """A privacy budget as the options describe it."""

    budget_epsilon: float | None
    budget_delta: float
    budget_days: float

    @contextlib.contextmanager
    def ledger(self, place: str, *, hide_repeats: bool = False) -> Iterator[Ledger]:
        """Open the ledger at ``place``; without an epsilon for commands that do not compare."""
        from client_lib.ledger import Budget, Ledger, open_store

        window = timedelta(days=self.budget_days) if self.budget_days else None
        budget = Budget(self.budget_epsilon or 1.0, delta=self.budget_delta, window=window)
        made = Ledger(open_store(place), budget=budget, hide_repeats=hide_repeats)
        with contextlib.closing(made) as opened:
            yield opened


def budget_options(*, required: bool) -> Callable[[F], F]:
    """Return the options of a budget, passed as ``budget``."""
    epsilon = click.option(
        "--budget-epsilon",
        type=POSITIVE,
        required=required,
        metavar="EPSILON",
        help="A subject's privacy budget within the window.",
    )
    delta = click.option("--budget-delta", type=SHARE, default=DELTA, show_default=True, help="The budget's delta.")
    days = click.option(
        "--budget-days",
        type=FiniteRange(0),
        default=30.0,
        show_default=True,
        metavar="DAYS",
        help="The window of the budget; 0 means no window.",
    )
    return grouped("budget", BudgetOptions, epsilon, delta, days)


def sampling_options(*, max_tokens: int, temperature: float) -> Callable[[F], F]:
    """Return the options ``--max-tokens`` and ``--temperature`` with these defaults."""
    return together(
        click.option(
            "--max-tokens", type=click.IntRange(1), default=max_tokens, show_default=True, help="Tokens to generate."
        ),
        click.option("--temperature", type=FiniteRange(0), default=temperature, show_default=True, help="0 is greedy."),
    )
