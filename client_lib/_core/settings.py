"""Turns the arguments of ``Client`` and ``AsyncClient`` into the core that both share, checking them on the way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

from client_lib._bundle_cache import BundleCache, default_cache_dir
from client_lib._core.flow import Core
from client_lib._core.hooks import LedgerHook, PolicyHook
from client_lib._core.observe import TelemetryHook
from client_lib._core.retry import RetryPolicy
from client_lib._validation import invalid
from client_lib.prompts.padding import Padding
from client_lib.types import Timeout

__all__ = ["ClientOptions", "core_from", "core_with", "timeout_from"]


class ClientOptions(TypedDict, total=False):
    """What ``with_options`` may change; the connections and the bundle stay those of the client."""

    subject: str | None
    variant: str | None
    padding: Padding | None
    policy: PolicyHook | None
    timeout: Timeout | float | None
    max_retries: int
    max_resumes: int
    telemetry: TelemetryHook | None


def core_from(
    base_url: str,
    *,
    api_key: str | None,
    cache_dir: str | os.PathLike[str] | None,
    bundle: str | os.PathLike[str] | None,
    fingerprint: str | None,
    max_retries: int,
    max_resumes: int,
    policy: PolicyHook | None,
    ledger: LedgerHook | None,
    subject: str | None,
    variant: str | None,
    padding: Padding | None,
    telemetry: TelemetryHook | None,
) -> Core:
    """The core of a client. Raises :class:`InvalidRequest` that names the argument."""
    # Headers are ASCII; the key itself never appears in a message.
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
        raise invalid("api_key", "not printable ASCII", "a non-empty ASCII string, or None")
    return Core(
        base_url=base_url,
        cache=BundleCache(default_cache_dir() if cache_dir is None else Path(cache_dir)),
        retry=RetryPolicy(max_retries),
        max_resumes=max_resumes,
        bundle_path=None if bundle is None else Path(bundle),
        pinned=fingerprint,
        api_key=api_key,
        policy=policy,
        ledger=ledger,
        subject=subject,
        variant=variant,
        padding=padding,
        telemetry=_hooks(telemetry),
    )


def core_with(core: Core, options: ClientOptions) -> Core:
    """The core with other options. Raises :class:`InvalidRequest` that names an unknown or unacceptable one."""
    changes: dict[str, object] = dict(options)
    unknown = sorted(set(changes) - set(ClientOptions.__annotations__))
    if unknown:
        raise invalid(unknown[0], "no option", ", ".join(ClientOptions.__annotations__))
    changes.pop("timeout", None)
    if "max_retries" in changes:
        changes["retry"] = replace(core.retry, max_retries=cast(int, changes.pop("max_retries")))
    if "telemetry" in changes:
        changes["telemetry"] = _hooks(cast("TelemetryHook | None", changes["telemetry"]))
    return replace(core, **changes)  # type: ignore[arg-type]


def _hooks(telemetry: TelemetryHook | None) -> tuple[TelemetryHook, ...]:
    """The caller's hook behind the log, which every client has."""
    from client_lib._core.log import CallLog  # the module logging is loaded for the first client, not with the package

    return (CallLog(),) if telemetry is None else (CallLog(), telemetry)


def timeout_from(timeout: Timeout | float | None) -> Timeout:
    """A number limits the whole call, None nothing."""
    if timeout is None:
        return Timeout(connect=None, read=None, total=None)
    if isinstance(timeout, Timeout):
        return timeout
    return Timeout(total=timeout)
