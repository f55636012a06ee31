"""``delctl doctor``: check the installation, and say what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from delctl.doctor import CHECKS, Subject, run_checks
from delctl.options import allow_http_option, api_key_option, grouped, json_option
from delctl.places import MODEL_PLACE, PLACE, bundle_place, model_place
from delctl.terminal import console, plain_table, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from delctl.doctor import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}

_subject_options = grouped(
    "subject",
    Subject,
    click.option("--bundle", type=bundle_place, metavar=PLACE, help="A bundle to verify.  [default: the demos']"),
    click.option("--model", type=model_place, metavar=MODEL_PLACE, help="The model that the bundle is for."),
    click.option("--url", envvar="DEL_URL", show_envvar=True, help="A server to check."),
    api_key_option,
    allow_http_option,
)


@click.command()
@_subject_options
@json_option
def doctor(subject: Subject, as_json: bool) -> None:
    """Check the installation and say what to do.

    Versions, processor, GPU, threads, memory, disks, ports, model, bundle, server and clock are
    checked. Nothing is accepted, and no keys are shown. The exit status is 1 if a check has failed.

    \b
    Examples:
        delctl doctor
        delctl doctor --bundle bundles/support --model models/my-llama
        delctl doctor --url https://del.example.com
    """
    with console(stderr=True).status("Checking ..."):
        findings = list(run_checks(CHECKS, subject))
    failures = [one for one in findings if one.status == "failed"]
    if as_json:
        print_json({"ok": not failures, "checks": [one.to_json() for one in findings]})
    else:
        _show(findings)
    if failures:
        click.get_current_context().exit(1)


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    table = plain_table("check", "status", "finding")
    for one in findings:
        said = [Text(printable(one.finding))]
        advice = [Padding(Text(printable(one.advice)), (0, 0, 0, 2))] if one.advice else []
        table.add_row(one.name, Text(one.status, style=_STYLES[one.status]), Group(*said, *advice))
    out = console()
    out.print(table)
    counts = {status: sum(one.status == status for one in findings) for status in _STYLES}
    out.print(f"\n{counts['ok']} ok, {counts['warning']} to look at, {counts['failed']} failed")
