"""``delctl keys``: API keys for a server, which holds only their hashes, and other keys."""

from __future__ import annotations

import os
from pathlib import Path

import click

from delctl.options import json_option
from delctl.terminal import print_json


@click.group()
def keys() -> None:
    """Make API keys for a server, and keys of bundles, gateways and issuers of passes."""


@keys.command()
@json_option
def new(as_json: bool) -> None:
    """Print a new key and its hash.

    Give the key to the caller (``delctl ask --api-key``, DEL_API_KEY), and the hash to the server
    (``keys.file`` or ``keys.names``). The key is not stored, and cannot be derived from the hash.
    """
    from deployments.auth.keys import hash_key, new_key

    key = new_key()
    if as_json:
        print_json({"key": key, "hash": hash_key(key)})
        return
    click.echo(f"key   {key}")
    click.echo(f"hash  {hash_key(key)}")


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def signing(file: Path, as_json: bool) -> None:
    """Make a key that signs bundles, in FILE, and print its public part.

    FILE is a private key: readable by its owner only, and never replaced. Give the public key to
    clients (``delctl ask --trusted-key``, ``Client(trusted_keys=...)``).
    """
    from del_core.bundle.signing import new_key, public_key

    pem = new_key()
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.BadParameter(f"must be a new file, got {file}, which exists", param_hint="FILE") from None
    with os.fdopen(handle, "wb") as opened:
        opened.write(pem)
    if as_json:
        print_json({"file": str(file), "public_key": public_key(pem)})
        return
    click.echo(f"public key  {public_key(pem)}")


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key-id", type=click.IntRange(0, 255), default=1, show_default=True, help="Another one for a new key.")
@json_option
def gateway(file: Path, key_id: int, as_json: bool) -> None:
    """Make the key of a gateway of Oblivious HTTP, in FILE, and print its configuration.

    FILE is a private key: readable by its owner only, and never replaced. The server reads it
    (gateway.key_file); give the configuration to clients (--gateway-key).
    """
    from del_core.ohttp import GatewayKey

    key = GatewayKey.generate(key_id)
    try:
        key.save(file)
    except FileExistsError:
        raise click.BadParameter(f"must be a new file, got {file}, which exists", param_hint="FILE") from None
    if as_json:
        print_json({"file": str(file), "configuration": key.config.to_list().hex()})
        return
    click.echo(f"configuration  {key.config.to_list().hex()}")


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--issuer", required=True, metavar="NAME", help="Host name of the server, which every pass names.")
@json_option
def passes(file: Path, issuer: str, as_json: bool) -> None:
    """Make the key of an issuer of passes, in FILE, and print its public configuration.

    FILE is a private key, and FILE.spent the record of its passes: both readable by their owner
    only, and never replaced. The server reads them (passes.key_file). Publish the configuration
    where everybody sees the same one; clients need it to get passes (delctl passes get --issuer).
    """
    from del_core.passes import IssuerKey, PassError
    from deployments.auth.pass_ledger import PassLedger, ledger_path

    try:
        key = IssuerKey.generate(issuer)
    except PassError as error:
        raise click.BadParameter(str(error), param_hint="--issuer") from None
    try:
        PassLedger.create(ledger_path(file))
        key.save(file)
    except FileExistsError:
        raise click.BadParameter(f"must be a new file, got {file}, which exists", param_hint="FILE") from None
    if as_json:
        record = str(ledger_path(file))
        print_json({"file": str(file), "record": record, "configuration": key.config.to_bytes().hex()})
        return
    click.echo(f"configuration  {key.config.to_bytes().hex()}")
