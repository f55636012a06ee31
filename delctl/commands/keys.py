"""``delctl keys``: API keys for a server, whose configuration contains only their hashes."""

from __future__ import annotations

import click


@click.group()
def keys() -> None:
    """Make API keys for a server."""


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
