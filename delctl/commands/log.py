"""``delctl log``: an append-only log of bundles, and proofs about it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.options import always_json_option, json_option
from delctl.places import PLACE, bundle_place
from delctl.terminal import print_json

if TYPE_CHECKING:
    from client_lib.trust.log import Head

_LOG = click.argument("path", metavar="LOG", type=click.Path(dir_okay=False, path_type=Path))
_OLD_LOG = click.argument("path", metavar="LOG", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def log() -> None:
    """Keep a transparency log of bundles (Merkle hashes of RFC 6962).

    Whoever publishes bundles appends each to LOG and publishes the log. Clients that compare its
    heads, SIZE:ROOT, find out whether they were shown the same bundles.
    """


@log.command()
@_LOG
@click.argument("bundle", type=bundle_place, metavar=PLACE)
@json_option
def append(path: Path, bundle: Path, as_json: bool) -> None:
    """Append a bundle's fingerprint, guarantees and audit dates to LOG; print the new head."""
    from client_lib.trust.log import TransparencyLog
    from del_core.bundle import load_client
    from del_core.bundle.signature import statement

    client = load_client(bundle / "client" if (bundle / "client").is_dir() else bundle)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    stated = statement(client.manifest, today)
    signature = client.signature
    stated["date"] = stated.pop("signed")
    stated["signing_key"] = None if signature is None else signature.key
    _show_head(TransparencyLog(path).append(stated), as_json)


@log.command()
@_OLD_LOG
@click.option("--head", metavar="SIZE:ROOT", help="An earlier head, which must be a beginning of the log.")
@click.option("--fingerprint", metavar="HEX", help="A bundle that must be in the log.")
@json_option
def verify(path: Path, head: str | None, fingerprint: str | None, as_json: bool) -> None:
    """Compute the head of LOG; check that it continues an earlier one and holds a bundle."""
    from client_lib.trust.log import Head, TransparencyLog

    opened = TransparencyLog(path)
    if head is not None:
        old = Head.parse(head)
        found = opened.head(old.size)
        if found.root != old.root:
            raise click.ClickException(
                f"the log must begin with {old}, got {found}: entries were changed, or it is another log"
            )
    if fingerprint is not None:
        _index(opened.entries(), fingerprint)
    _show_head(opened.head(), as_json)


@log.command()
@_OLD_LOG
@click.option("--fingerprint", metavar="HEX", help="Prove that this bundle is in the log.")
@click.option(
    "--since", type=click.IntRange(0), metavar="SIZE", help="Prove that the head of this size is a beginning."
)
@always_json_option
def prove(path: Path, fingerprint: str | None, since: int | None) -> None:
    """Print a proof of inclusion or of consistency as JSON."""
    from client_lib.trust.log import TransparencyLog, consistency_proof, inclusion_proof

    if (fingerprint is None) == (since is None):
        raise click.UsageError("one of --fingerprint and --since is needed")
    opened = TransparencyLog(path)
    report: dict[str, object] = {"head": str(opened.head())}
    if fingerprint is not None:
        entries = opened.entries()
        index = _index(entries, fingerprint)
        proof = inclusion_proof(opened.leaves(), index)
        report |= {"index": index, "entry": entries[index].decode()}
    else:
        assert since is not None
        report["old_head"] = str(opened.head(since))
        proof = consistency_proof(opened.leaves(), since)
    print_json({**report, "proof": [step.hex() for step in proof]})


def _show_head(head: Head, as_json: bool) -> None:
    if as_json:
        print_json({"head": str(head), "size": head.size, "root": head.root.hex()})
    else:
        click.echo(str(head))


def _index(entries: list[bytes], fingerprint: str) -> int:
    """Return the index of a bundle's last entry."""
    for index in range(len(entries) - 1, -1, -1):
        if json.loads(entries[index]).get("fingerprint") == fingerprint:
            return index
    raise click.ClickException(f"the log must hold the bundle {fingerprint}, got {len(entries)} other entries")
