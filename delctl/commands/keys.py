"""``delctl keys``: API keys for a server. A key is shown once; the server's configuration holds its hash alone."""

from __future__ import annotations

import click

__all__ = ["keys"]


@click.group()
def keys() -> None:
    """Make API keys for a server."""


@keys.command()
def new() -> None:
    """Print a new key and its hash.

    The key goes to whoever is to call (``delctl ask --api-key``, DEL_API_KEY), the hash into the server's ``keys.file``
    or ``keys.names``. The key is stored nowhere and cannot be had from the hash.
    """
    from deployments.auth.keys import hash_key, new_key

    key = new_key()
    click.echo(f"key   {key}")
    click.echo(f"hash  {hash_key(key)}")
