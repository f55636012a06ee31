"""``delctl trust``: what was accepted from servers, and the acceptance of another offer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.options import DELTA, allow_http_option, api_key_option, json_option
from delctl.terminal import console, plain_table, print_json, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from client_lib.trust import FileTrustStore, TrustRecord

_URL = click.argument("url", envvar="DEL_URL")
_FILE = click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The trust file.  [default: trust.json in $DEL_CONFIG_DIR, $DEL_CACHE_DIR or the user's configuration]",
)


def _store(path: Path | None) -> FileTrustStore:
    from client_lib.trust import FileTrustStore, default_trust_file

    return FileTrustStore(path or default_trust_file())


@click.group()
def trust() -> None:
    """Show, accept and forget what was accepted from servers.

    The first bundle of a server is accepted and remembered. Afterwards the client, the proxy and
    delctl ask refuse a bundle with another table or tokenizer, or with less noise, until it is
    accepted here.
    """


@trust.command()
@click.argument("url", required=False)
@_FILE
@json_option
def show(url: str | None, path: Path | None, as_json: bool) -> None:
    """Show what was accepted from all servers, or from one."""
    store = _store(path)
    records = dict(store.records())
    if url is not None:
        name, record = _find(records, url)
        records = {name: record}
    if as_json:
        print_json({name: record.to_json() for name, record in records.items()})
        return
    out = console()
    if not records:
        out.print("Nothing has been accepted.")
    for name, record in sorted(records.items()):
        out.print(printable(name), style="bold")
        _print(record, out)


@trust.command()
@_URL
@click.option("--fingerprint", metavar="HEX", help="Accept only the bundle with this fingerprint.")
@api_key_option
@allow_http_option
@_FILE
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def accept(
    url: str,
    fingerprint: str | None,
    api_key: str | None,
    allow_http: bool,
    path: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Fetch the bundle that a server offers now, show what changed, and accept it.

    The bundle takes the place of what was accepted from this server.
    """
    from client_lib import Client
    from client_lib.trust import MemoryTrustStore, server_name

    store, offered = _store(path), MemoryTrustStore()
    with Client(url, api_key=api_key, allow_http=allow_http, trust=offered, max_retries=4) as client:
        client.bundle()
        name = server_name(client.base_url)
    offer = offered.records()[name]
    if fingerprint not in (None, offer.fingerprint):
        raise click.ClickException(f"the server's bundle must be {fingerprint}, got {offer.fingerprint}")
    before = store.records().get(name)
    changes = () if before is None else before.changes(offer, named=tuple(before.variants))
    out = console(stderr=as_json)
    out.print(f"{printable(name)} offers:", style="bold")
    _print(offer, out)
    if before is not None:
        words = "It is equal to, or stronger than, what was accepted" if not changes else "Changed since"
        out.print(f"{words} on {before.accepted_at}{'.' if not changes else ':'}")
        for change in changes:
            out.print(f"  {printable(str(change))}", soft_wrap=True)
    if not yes:
        click.confirm("Accept it?", abort=True, err=True)
    store.update(name, lambda _: offer)
    if as_json:
        changed = None if before is None else [str(change) for change in changes]
        print_json({"server": name, "accepted": offer.to_json(), "changes": changed})
    else:
        click.echo(f"accepted {offer.fingerprint}")


@trust.command()
@_URL
@_FILE
@json_option
def forget(url: str, path: Path | None, as_json: bool) -> None:
    """Forget what was accepted from a server; its next offer is accepted as a first one."""
    store = _store(path)
    name, record = _find(store.records(), url)
    store.update(name, lambda _: None)
    if as_json:
        print_json({"server": name, "forgotten": record.to_json()})
    else:
        click.echo(f"forgot {printable(name)}")


def _find(records: Mapping[str, TrustRecord], url: str) -> tuple[str, TrustRecord]:
    """Return a server's name and record; the scheme of the URL may be missing."""
    from client_lib.trust import server_name

    name = (server_name(url) if "://" in url else url).rstrip("/")
    if name not in records:
        known = ", ".join(sorted(records)) or "no server"
        raise click.BadParameter(f"must be a server with a record ({known}), got {name!r}", param_hint="URL")
    return name, records[name]


def _print(record: TrustRecord, out: Console) -> None:
    facts = {
        "bundle": record.fingerprint,
        "table": record.table,
        "tokenizer": record.tokenizer,
        "signed by": record.signing_key or "nobody",
        "transport": record.transport,
        "since": record.accepted_at,
    }
    for label, value in facts.items():
        out.print(f"  {label:10} {printable(value)}", soft_wrap=True)
    table = plain_table("variant", f"epsilon a token at delta {DELTA:g}", "mechanism", "audit", right=())
    for name, variant in record.variants.items():
        epsilon = variant.epsilons[0]
        shown = "unbounded" if epsilon is None else f"{epsilon:.2f}"
        table.add_row(printable(name), shown, printable(variant.mechanism), variant.audit_date or "no date")
    out.print(table)
