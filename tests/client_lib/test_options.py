"""Options of clients and requests: defined once, and refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from client_lib import (
    AsyncClient,
    Client,
    ClientOptions,
    InvalidRequestError,
    RetryPolicy,
    SamplingOptions,
    ServerError,
    errors,
)
from client_lib.options import CallOptions
from del_core.wire import Sampling
from tests.support.scripted_server import ScriptedServer, error

URL = "http://127.0.0.1:1"


def test_sampling_fields_are_those_of_the_wire_format() -> None:
    fields = {field.name for field in dataclasses.fields(Sampling)}
    assert set(SamplingOptions.__annotations__) == fields - {"stream"}


def test_every_option_has_a_description() -> None:
    source = (Path(errors.__file__).parent / "options.py").read_text("utf-8").partition("class CallOptions")[2]
    for name in ClientOptions.__annotations__:
        declaration = source.partition(f"\n    {name}: ")[2].split("\n")
        assert declaration[1].strip().startswith('"""'), name


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_unknown_option_is_refused_by_name(kind: type[Client] | type[AsyncClient]) -> None:
    options: dict[str, Any] = {"max_retrys": 3}
    with pytest.raises(TypeError, match="max_retrys"):
        kind(URL, **options)
    with pytest.raises(InvalidRequestError, match=r"option must be one of .*, got 'max_retrys'") as caught:
        kind(URL).with_options(**options)
    assert caught.value.field == "max_retrys"


def test_with_options_changes_calls_only() -> None:
    fixed = set(ClientOptions.__annotations__) - set(CallOptions.__annotations__)
    connection = {
        "api_key",
        "cache_dir",
        "bundle",
        "fingerprint",
        "ledger",
        "relay",
        "gateway_key",
        "http2",
        "passes",
        "upstream",
    }
    assert fixed == connection | {"accept", "allow_http", "trust", "trusted_keys"}


@pytest.mark.parametrize(
    ("options", "tries"),
    [
        ({"retry": RetryPolicy(2, first_pause=0.001)}, 3),
        ({"retry": RetryPolicy(2, first_pause=0.001), "max_retries": 1}, 2),
        ({"retry": RetryPolicy(0)}, 1),
    ],
)
def test_the_retry_policy_is_an_option(
    server: ScriptedServer, tmp_path: Path, options: dict[str, Any], tries: int
) -> None:
    with Client(server.url, cache_dir=tmp_path, variant="open", **options) as client:
        client.bundle()
        server.script.extend([error(503, "engine_unavailable", {"retry-after": "0"})] * 5)
        with pytest.raises(ServerError):
            client.complete("text")
        assert len(server.frames) == tries


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("PermissionDenied", ("AuthenticationError", "PermissionDeniedError")),
        ("Overloaded", ("RateLimitError", "ServiceUnavailableError")),
        ("BudgetExceeded", ("BudgetExceededError",)),
        ("InvalidRequest", ("InvalidRequestError",)),
    ],
)
def test_old_names_catch_the_new_errors(old: str, new: tuple[str, ...]) -> None:
    for name in new:
        assert issubclass(getattr(errors, name), getattr(errors, old))


def test_every_error_ends_in_error() -> None:
    kinds = [found for name in errors.__all__ if isinstance(found := getattr(errors, name), type)]
    assert all(kind.__name__.endswith("Error") for kind in kinds)
    assert all(issubclass(kind, errors.DELClientError) for kind in kinds)
