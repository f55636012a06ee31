"""A small bundle for the tests of the bundle format, and what a forger would do to it."""

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
    Variant,
    VariantContent,
    canonical_json,
)

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


def variant(name: str, rows: int, **more: Any) -> VariantContent:
    rng = np.random.default_rng(len(name))
    return VariantContent(
        Variant(
            name=name,
            task="general",
            bits=4,
            ratio_numerator=2**30,
            soft_prompt_length=rows,
            guarantees=Guarantees(delta=1e-6, epsilon=12.5, epsilon_vocabulary=None, mu=3.0),
            **more,
        ),
        weight=rng.normal(size=(HIDDEN, DIM)).astype(np.float16),
        bias=rng.normal(size=HIDDEN),
        norm_limit=2.5,
        soft_prompt=rng.normal(size=(rows, HIDDEN)).astype(np.float32) if rows else None,
    )


def content(**more: Any) -> dict[str, Any]:
    table = np.random.default_rng(0).integers(-MAX_LEVEL, MAX_LEVEL, size=(VOCABULARY, DIM), endpoint=True)
    return {
        "base_model": BaseModel("tests/tiny", "ab" * 32, HIDDEN, VOCABULARY),
        "table": table,
        "max_level": MAX_LEVEL,
        "clip": 1.5,
        "tokenizer_json": b'{"version": "1.0"}',
        "variants": [variant("open", 32), variant("strict", 0)],
        "log_prior": np.full(VOCABULARY, -np.log(VOCABULARY)),
        "bos_token_id": 1,
        **more,
    }


def refusal(call: Callable[[], object], *names: str) -> BundleError:
    """The BundleError of a call, which has to name one of these files."""
    with pytest.raises(BundleError) as caught:
        call()
    error = caught.value
    assert error.file in names
    assert str(error) == f"{error.file}: {error.reason}"
    assert str(error).isprintable()
    return error


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Alters a bundle's manifest, then makes digests, sizes and fingerprint fit again: what a forger would do."""
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
    """No change, for :func:`reseal`."""
