"""``delctl sign``: a signature of a bundle, which servers hand out with it."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--key", required=True, type=KEY_FILE, help="The private key that delctl keys signing made.")
def sign(bundle: Path, key: Path) -> None:
    """Sign BUNDLE: its fingerprint, its guarantees, and the dates and successes of its audits.

    The signature is written to client/signature.json. An audit written later changes the bundle,
    which then has to be signed again.
    """
    sign_directory(bundle, key)


def sign_directory(bundle: Path, key: Path) -> None:
    """Sign a bundle's directory and print who signed what. Raises BadParameter for another key."""
    from del_core.bundle.signing import sign_bundle

    try:
        made = sign_bundle(bundle, key.read_bytes(), signed=datetime.datetime.now(datetime.UTC).date())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--key") from None
    click.echo(f"signed {bundle} on {made.signed} with {made.key}")
