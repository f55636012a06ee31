"""``delctl sign``: a signature of a bundle, which servers hand out with it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from delctl.options import json_option
from delctl.terminal import print_json

if TYPE_CHECKING:
    from del_core.bundle.signature import Signature

KEY_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--key", required=True, type=KEY_FILE, help="The private key that delctl keys signing made.")
@json_option
def sign(bundle: Path, key: Path, as_json: bool) -> None:
    """Sign BUNDLE: its fingerprint, its guarantees, and the dates and successes of its audits.

    The signature is written to client/signature.json. An audit written later changes the bundle,
    which then has to be signed again.
    """
    made = sign_directory(bundle, key)
    if as_json:
        print_json({"bundle": str(bundle), "signed": made.signed, "key": made.key})
    else:
        click.echo(signed_words(bundle, made))


def sign_directory(bundle: Path, key: Path) -> Signature:
    """Sign a bundle's directory. Raises BadParameter for another key."""
    from del_core.bundle.signing import sign_bundle

    try:
        return sign_bundle(bundle, key.read_bytes(), signed=datetime.datetime.now(datetime.UTC).date())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--key") from None


def signed_words(bundle: Path, made: Signature) -> str:
    """Return who signed what, for a person."""
    return f"signed {bundle} on {made.signed} with {made.key}"
