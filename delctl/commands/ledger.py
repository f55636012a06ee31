"""``delctl ledger``: what a ledger keeps of its subjects. Reading changes nothing, whatever budget is named."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from delctl.terminal import console, plain_table, printable

if TYPE_CHECKING:
    from client_lib.ledger import Ledger

__all__ = ["ledger"]

F = TypeVar("F", bound=Callable[..., Any])


def _place(_: click.Context, __: click.Parameter, value: str) -> str:
    """A place where a ledger is: a mistyped path must not make an empty one."""
    from client_lib.ledger import is_url

    if not is_url(value) and not Path(value).is_file():
        raise click.BadParameter(f"{value!r} is no file; allowed: a ledger's SQLite file, or a redis:// URL")
    return value


_PLACE = click.argument("place", metavar="LEDGER", callback=_place)


def _budget(command: F) -> F:
    """The options that describe the budget, as for ``delctl proxy``."""
    for option in (
        click.option("--budget-days", type=click.FloatRange(0), default=30.0, show_default=True, metavar="DAYS"),
        click.option(
            "--budget-delta",
            type=click.FloatRange(0, 1, min_open=True, max_open=True),
            default=1e-6,
            show_default=True,
            metavar="DELTA",
        ),
        click.option(
            "--budget-epsilon",
            type=click.FloatRange(0, min_open=True),
            required=True,
            metavar="EPSILON",
            help="The budget that the ledger is kept with: epsilon is computed as it is compared with this.",
        ),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def _opened(place: str, epsilon: float, delta: float, days: float) -> Iterator[Ledger]:
    from client_lib.ledger import Budget, Ledger, open_store

    window = timedelta(days=days) if days else None
    opened = Ledger(open_store(place), budget=Budget(epsilon, delta=delta, window=window))
    try:
        yield opened
    finally:
        opened.close()


@click.group()
def ledger() -> None:
    """Show, export and erase what a ledger keeps of its subjects.

    LEDGER is the SQLite file, or the redis:// URL, that a client or delctl proxy was given.
    """


@ledger.command()
@_PLACE
@click.argument("subjects", metavar="[SUBJECT]...", nargs=-1)
@_budget
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(
    place: str,
    subjects: tuple[str, ...],
    budget_epsilon: float,
    budget_delta: float,
    budget_days: float,
    as_json: bool,
) -> None:
    """Show what subjects have spent: those named, or all.

    The largest spending comes first.
    """
    with _opened(place, budget_epsilon, budget_delta, budget_days) as opened:
        spendings = [opened.spent(subject) for subject in subjects or opened.store.subjects()]
    spendings.sort(key=lambda spending: -spending.epsilon)
    if as_json:
        rows = [
            {"subject": one.subject, "epsilon": one.epsilon if math.isfinite(one.epsilon) else None}
            for one in spendings
        ]
        report = {"budget": budget_epsilon, "delta": budget_delta, "days": budget_days or None, "subjects": rows}
        click.echo(json.dumps(report, indent=2))
        return
    out = console()
    if not spendings:
        out.print("Nothing has been spent.")
        return
    table = plain_table("subject", "epsilon spent", "of budget", right=("epsilon spent", "of budget"))
    for one in spendings:
        table.add_row(printable(one.subject), f"{one.epsilon:.2f}", f"{one.epsilon / budget_epsilon:.1%}")
    out.print(table)
    window = f"within {budget_days:g} days" if budget_days else "ever"
    out.print(f"at delta {budget_delta:g}, {window}; the budget is {budget_epsilon:g}")


@ledger.command()
@_PLACE
@click.argument("subject")
@_budget
def export(place: str, subject: str, budget_epsilon: float, budget_delta: float, budget_days: float) -> None:
    """Write what is kept of a subject as JSON."""
    with _opened(place, budget_epsilon, budget_delta, budget_days) as opened:
        click.echo(json.dumps(opened.export(subject), indent=2))


@ledger.command()
@_PLACE
@click.argument("subject")
@click.option("--yes", is_flag=True, help="Do not ask.")
def erase(place: str, subject: str, yes: bool) -> None:
    """Delete all that is kept of a subject.

    The subject then has the whole budget again.
    """
    if not yes:
        click.confirm(f"Erase {printable(subject)}? They will have their whole budget again.", abort=True, err=True)
    # The budget has no part in erasing.
    with _opened(place, 1.0, 0.5, 0.0) as opened:
        found = opened.erase(subject)
    if not found:
        raise click.ClickException(f"nothing is kept of {printable(subject)}")
    click.echo(f"erased {printable(subject)}")
