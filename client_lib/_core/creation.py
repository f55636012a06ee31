"""The core of a client from the client's options."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from client_lib._core.flow import Core
from client_lib._validation import check_key, invalid
from client_lib.bundle_cache import BundleCache
from client_lib.options import CallOptions, ClientOptions, TelemetryHook, check_names
from client_lib.passes import PassFile
from client_lib.protocol.upstream import UPSTREAMS
from client_lib.trust import FileTrustStore, Trust, default_trust_file
from del_core.bundle.files import user_cache_dir


def core_from(base_url: str, options: ClientOptions) -> Core:
    """Return the core of a client. Raises ``InvalidRequestError`` for an unacceptable option."""
    unknown = sorted(set(options) - set(ClientOptions.__annotations__))
    if unknown:  # as Python does for a keyword argument that a function lacks
        raise TypeError(f"got an unexpected keyword argument {unknown[0]!r}")
    api_key, cache_dir, bundle = options.get("api_key"), options.get("cache_dir"), options.get("bundle")
    check_key("api_key", api_key)
    passes = options.get("passes")
    if passes is not None and api_key is not None:
        raise invalid("api_key", "None with passes, since it would name the caller of each", "a value")
    name = options.get("upstream", "del")
    if name not in UPSTREAMS:
        raise invalid("upstream", f"one of {', '.join(UPSTREAMS)}", repr(name))
    if bundle is None and not UPSTREAMS[name].has_bundle:
        raise invalid("bundle", f"given with upstream {name}, since such a server hands out none", "None")
    keys = options.get("trusted_keys") or ()
    accept, store = options.get("accept") or (), options.get("trust") or default_trust_file(cache_dir)
    core = Core(
        base_url=base_url,
        cache=BundleCache(user_cache_dir() if cache_dir is None else Path(cache_dir)),
        bundle_path=None if bundle is None else Path(bundle),
        upstream=UPSTREAMS[name],
        pinned=options.get("fingerprint"),
        trust=Trust(FileTrustStore(store) if isinstance(store, str | os.PathLike) else store),
        accept=frozenset([accept] if isinstance(accept, str) else accept),
        trusted_keys=frozenset([keys] if isinstance(keys, str) else keys),
        api_key=api_key,
        passes=PassFile(passes) if isinstance(passes, str | os.PathLike) else passes,
        ledger=options.get("ledger"),
        telemetry=_hooks(None),
    )
    return _changed(core, {name: options[name] for name in CallOptions.__annotations__ if name in options})  # type: ignore[literal-required]


def core_with(core: Core, options: CallOptions) -> Core:
    """Return the core with other options. Raises ``InvalidRequestError``."""
    check_names("option", options, CallOptions)
    return _changed(core, dict(options))


def _changed(core: Core, changes: dict[str, Any]) -> Core:
    changes.pop("timeout", None)  # the driver's
    if "max_retries" in changes:
        changes["retry"] = replace(changes.get("retry", core.retry), max_retries=changes.pop("max_retries"))
    if "telemetry" in changes:
        changes["telemetry"] = _hooks(changes["telemetry"])
    return replace(core, **changes)


def _hooks(telemetry: TelemetryHook | None) -> tuple[TelemetryHook, ...]:
    """Return the log, which every client has, and the caller's hook."""
    from client_lib._core.log import CallLog  # loads logging with the first client, not the package

    return (CallLog(),) if telemetry is None else (CallLog(), telemetry)
