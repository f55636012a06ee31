"""What a command says while its server cannot be reached."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from client_lib.options import Attributes, CallObserver

START_HINT = "start a server with `delctl serve`"


class SayRetries:
    """Telemetry hook of a client that says on standard error when a call begins to retry."""

    def __init__(self, server: str) -> None:
        self._server = server

    def begin(self, operation: str, attributes: Attributes) -> CallObserver | None:
        """Observe one call."""
        return _Call(self._server)


class _Call:
    """Says the first retry of a call."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._said = False

    def headers(self) -> Mapping[str, str]:
        return {}

    def event(self, name: str, attributes: Attributes) -> None:
        if name == "retry" and not self._said:
            self._said = True
            click.echo(f"retrying {self._server} ({attributes['why']}) ...", err=True)

    def end(self, attributes: Attributes, error: object) -> None:
        pass  # the command reports a failure itself


@contextlib.contextmanager
def hint_at_start(server: str) -> Iterator[None]:
    """Say how to start a server if this one cannot be reached. Raises ClickException."""
    from client_lib import ConnectionFailedError

    try:
        yield
    except ConnectionFailedError as error:
        # With a status, something has answered.
        if error.status is not None:
            raise
        raise click.ClickException(f"{server} cannot be reached; {START_HINT}, or name another one") from error
