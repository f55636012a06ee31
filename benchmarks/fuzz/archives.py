"""Archives of client parts that are consistent in themselves, whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from del_core.bundle import ClientBundle, canonical_json
from del_core.bundle.archive import pack
from del_core.bundle.manifest import MANIFEST, FileEntry

__all__ = ["forged_archive", "packed"]


def forged_archive(bundle: ClientBundle, files: Mapping[str, bytes]) -> bytes:
    """Return the archive of a client part with other files and the right digests."""
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.manifest.client_files if name != MANIFEST}
    contents |= files
    entries = {name: FileEntry.of(data) for name, data in contents.items()}
    manifest = replace(bundle.manifest, files=entries).sealed()
    return packed(manifest.client_json(), contents)


def packed(manifest: Mapping[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """Return the archive of a manifest, which need not be valid, and of the files beside it."""
    return pack([(MANIFEST, canonical_json(manifest)), *contents.items()])
