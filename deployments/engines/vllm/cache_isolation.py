"""Prompts of different callers share no cached keys and values, while all share the soft prompts'.

vLLM names a block of its cache by a hash over the block, all blocks before it and, in a request's first block, the
request's ``cache_salt``. With a salt for each caller that would keep one copy of every soft prompt for each of them.
Here the salt enters with the first block that holds anything but the soft prompt; as hashes are chained, it is in all
that follow. A salt is written ``<shared rows>:<secret>``.

:func:`install` replaces vLLM's function by name, in the process that computes the hashes. Where it is not installed (a
release of vLLM without a function of that name; several GPUs for one model, where workers are processes of their own)
vLLM's own rule holds: callers are isolated all the same, and each has its own copy of the soft prompts.
"""

from __future__ import annotations

import sys
from typing import Any

from deployments.engines.vllm.parent_guard import ParentGuard

__all__ = ["EngineExtension", "install", "salt_for"]

_NAME = "generate_block_hash_extra_keys"


class EngineExtension(ParentGuard):
    """Named to vLLM as ``worker_extension_cls``, so that its engine's process imports this module."""


def salt_for(shared_rows: int, secret: str) -> str:
    """The ``cache_salt`` of a prompt whose first rows are everybody's."""
    return f"{shared_rows}:{secret}"


def install() -> bool:
    """Let salts enter after the shared rows, in this process; whether that was possible."""
    from vllm.v1.core import kv_cache_utils

    original = getattr(kv_cache_utils, _NAME, None)
    if original is None or hasattr(original, "replaces"):
        return original is not None

    def extra_keys(request: Any, start: int, end: int, media: int) -> tuple[tuple[Any, ...] | None, int]:
        keys, media = original(request, start, end, media)
        salt = request.cache_salt
        if not salt:
            return keys, media
        shared, separator, _ = salt.partition(":")
        if not separator or not shared.isdigit():
            return keys, media
        own = [key for key in keys or () if key != ("cache_salt", salt)]
        if start <= int(shared) < end:
            own.append(("cache_salt", salt))
        return tuple(own) or None, media

    extra_keys.replaces = original  # type: ignore[attr-defined]
    # Every module that has imported it by name.
    for module in [module for name, module in sys.modules.items() if name.startswith("vllm.")]:
        if getattr(module, _NAME, None) is original:
            setattr(module, _NAME, extra_keys)
    return True


# The engine's process has vLLM loaded when it imports this for its worker; whoever imports it elsewhere has not.
if "vllm.v1.engine.core" in sys.modules:
    install()
