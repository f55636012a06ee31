"""A small bundle for the tests of the bundle format, and the means to forge it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from del_core.bundle import (
    CLIENT_FILES,
    BaseModel,
    BundleError,
    Guarantees,
    VariantContent,
    canonical_json,
)
from tests.support.bundle import bundle_content, make_variant

VOCABULARY, DIM, HIDDEN = 20, 6, 8
MAX_LEVEL = 1000
SERVER_FILES = (
    "decoder-open.safetensors",
    "decoder-strict.safetensors",
    "prior.safetensors",
    "soft-prompt-open.safetensors",
)
ALL_FILES = (
    "manifest.json",
    *(f"client/{name}" for name in CLIENT_FILES),
    *(f"server/{name}" for name in SERVER_FILES),
)


def variant(name: str, rows: int, **fields: Any) -> VariantContent:
    """Make a variant whose numbers depend on the length of its name."""
    rng = np.random.default_rng(len(name))
    return make_variant(
        name,
        ratio_numerator=2**30,
        guarantees=Guarantees(delta=1e-6, epsilon=12.5, epsilon_vocabulary=None, mu=3.0),
        weight=rng.normal(size=(HIDDEN, DIM)).astype(np.float16),
        bias=rng.normal(size=HIDDEN),
        norm_limit=2.5,
        soft_prompt=rng.normal(size=(rows, HIDDEN)).astype(np.float32) if rows else None,
        **fields,
    )


def content(**changes: Any) -> dict[str, Any]:
    """Return the arguments of ``write_bundle`` for a bundle of two variants."""
    table = np.random.default_rng(0).integers(-MAX_LEVEL, MAX_LEVEL, size=(VOCABULARY, DIM), endpoint=True)
    values = {
        "base_model": BaseModel("tests/tiny", "ab" * 32, HIDDEN, VOCABULARY),
        "max_level": MAX_LEVEL,
        "clip": 1.5,
        "log_prior": np.full(VOCABULARY, -np.log(VOCABULARY)),
        "bos_token_id": 1,
    }
    return {**bundle_content(table, [variant("open", 32), variant("strict", 0)], **values), **changes}


def refusal(call: Callable[[], object], *names: str) -> BundleError:
    """Return the BundleError of a call; it has to name one of these files."""
    with pytest.raises(BundleError) as caught:
        call()
    error = caught.value
    assert error.file in names
    assert str(error) == f"{error.file}: {error.reason}"
    assert str(error).isprintable()
    return error


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alter a bundle's manifest as a forger would: digests, sizes and fingerprint fit again."""
    value = json.loads((path / "manifest.json").read_bytes())
    for folder, entries in (("client", value["files"]), ("server", value["server"]["files"])):
        for name in entries:
            if (path / folder / name).is_file():
                data = (path / folder / name).read_bytes()
                entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    change(value)
    value["server_digest"] = hashlib.sha256(canonical_json(value["server"])).hexdigest()
    value.pop("fingerprint")
    client = {key: item for key, item in value.items() if key != "server"}
    client["fingerprint"] = hashlib.sha256(canonical_json(client)).hexdigest()
    (path / "manifest.json").write_bytes(canonical_json({**value, **client}))
    (path / "client" / "manifest.json").write_bytes(canonical_json(client))


def unchanged(_: dict[str, Any]) -> None:
    """Change nothing; see :func:`reseal`."""
