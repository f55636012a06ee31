"""``delctl ledger``: inspect and erase the data of a ledger's subjects."""

from __future__ import annotations

import math
from pathlib import Path

import click

from delctl.options import DELTA, BudgetOptions, always_json_option, budget_options, json_option
from delctl.terminal import console, plain_table, print_json, printable


def _place(_: click.Context, __: click.Parameter, value: str) -> str:
    """Check that a ledger exists: a mistyped path must not create an empty one."""
    from client_lib.ledger import is_url

    if not is_url(value) and not Path(value).is_file():
        raise click.BadParameter(f"must be a ledger's SQLite file or a redis:// URL, got {value!r}")
    return value


_PLACE = click.argument("place", metavar="LEDGER", callback=_place)


@click.group()
def ledger() -> None:
    """Show, export and erase the data of a ledger's subjects.

    LEDGER is the SQLite file, or the redis:// URL, of a client or of delctl proxy.
    """


@ledger.command()
@_PLACE
@click.argument("subjects", metavar="[SUBJECT]...", nargs=-1)
@budget_options(required=True)
@json_option
def status(place: str, subjects: tuple[str, ...], budget: BudgetOptions, as_json: bool) -> None:
    """Show the spending of subjects: those named, or all.

    The largest spending comes first.
    """
    with budget.ledger(place) as opened:
        limit = opened.budget
        spendings = [opened.spent(subject) for subject in subjects or opened.store.subjects()]
    spendings.sort(key=lambda spending: -spending.epsilon)
    if as_json:
        rows = [
            {"subject": one.subject, "epsilon": one.epsilon if math.isfinite(one.epsilon) else None}
            for one in spendings
        ]
        days = budget.budget_days or None
        report = {"budget": limit.epsilon, "delta": limit.delta, "days": days, "subjects": rows}
        print_json(report)
        return
    out = console()
    if not spendings:
        out.print("Nothing has been spent.")
        return
    table = plain_table("subject", "epsilon spent", "of budget", right=("epsilon spent", "of budget"))
    for one in spendings:
        table.add_row(printable(one.subject), f"{one.epsilon:.2f}", f"{one.epsilon / limit.epsilon:.1%}")
    out.print(table)
    window = f"within {budget.budget_days:g} days" if budget.budget_days else "ever"
    out.print(f"at delta {limit.delta:g}, {window}; the budget is {limit.epsilon:g}")


@ledger.command()
@_PLACE
@click.argument("subject")
@budget_options(required=True)
@always_json_option
def export(place: str, subject: str, budget: BudgetOptions) -> None:
    """Write the data of a subject as JSON."""
    with budget.ledger(place) as opened:
        print_json(opened.export(subject))


@ledger.command()
@_PLACE
@click.argument("subject")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def erase(place: str, subject: str, yes: bool, as_json: bool) -> None:
    """Delete all data of a subject.

    The subject then has the whole budget again.
    """
    if not yes:
        click.confirm(f"Erase {printable(subject)}? They will have their whole budget again.", abort=True, err=True)
    # Erasing does not depend on the budget.
    with BudgetOptions(None, DELTA, 0.0).ledger(place) as opened:
        found = opened.erase(subject)
    if not found:
        raise click.ClickException(f"the ledger has no data of {printable(subject)}")
    if as_json:
        print_json({"subject": subject, "erased": True})
    else:
        click.echo(f"erased {printable(subject)}")
