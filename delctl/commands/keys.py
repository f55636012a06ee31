"""``delctl keys``: API keys for a server, which holds only their hashes, and other keys."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.group()
def keys() -> None:
    """Make API keys for a server, keys that sign bundles, and keys of gateways."""


@keys.command()
def new() -> None:
    """Print a new key and its hash.

    Give the key to the caller (``delctl ask --api-key``, DEL_API_KEY), and the hash to the server
    (``keys.file`` or ``keys.names``). The key is not stored, and cannot be derived from the hash.
    """
    from deployments.auth.keys import hash_key, new_key

    key = new_key()
    click.echo(f"key   {key}")
    click.echo(f"hash  {hash_key(key)}")


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
def signing(file: Path) -> None:
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
    click.echo(f"public key  {public_key(pem)}")


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key-id", type=click.IntRange(0, 255), default=1, show_default=True, help="Another one for a new key.")
def gateway(file: Path, key_id: int) -> None:
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
    click.echo(f"configuration  {key.config.to_list().hex()}")
