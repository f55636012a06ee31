"""The factory of the tests' bundles, and the small bundle of the client's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from del_core.bundle import (
    Adapter,
    BaseModel,
    ChatFormat,
    ClientBundle,
    Guarantees,
    Variant,
    VariantContent,
    load_client,
    write_bundle,
)
from tests.support.tokenizer import byte_level_bpe

__all__ = ["BOS", "DIM", "bundle_content", "make_bundle", "make_tokenizer", "make_variant"]


def make_variant(
    name: str,
    *,
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    norm_limit: float = 1.0,
    soft_prompt: NDArray[Any] | None = None,
    guarantees: Guarantees | None = None,
    adapter: Adapter | None = None,
    **fields: Any,
) -> VariantContent:
    """Make a variant with a linear decoder; ``fields`` are those of ``del_core.bundle.Variant``."""
    values: dict[str, Any] = {"task": "general", "bits": 4, "ratio_numerator": 1 << 29, **fields}
    return VariantContent(
        Variant(
            name=name,
            soft_prompt_length=0 if soft_prompt is None else len(soft_prompt),
            guarantees=guarantees or Guarantees(delta=1e-6, epsilon=2.5, epsilon_vocabulary=None, mu=1.0),
            adapter=None if adapter is None else adapter.shape,
            **values,
        ),
        weight=weight,
        bias=np.zeros(len(weight), np.float32) if bias is None else bias,
        norm_limit=norm_limit,
        soft_prompt=soft_prompt,
        adapter=adapter,
    )


def bundle_content(table: NDArray[Any], variants: list[VariantContent], **changes: Any) -> dict[str, Any]:
    """Return the arguments of ``write_bundle`` after the path; ``changes`` replace them."""
    rows = len(table)
    return {
        "base_model": BaseModel("test", "0" * 64, hidden_size=len(variants[0].weight), vocabulary_size=rows),
        "table": table,
        "max_level": 32767,
        "clip": 1.0,
        "tokenizer_json": b'{"version": "1.0"}',
        "variants": variants,
        "log_prior": np.full(rows, -np.log(rows), np.float32),
        "bos_token_id": None,
        **changes,
    }


# ----------------------------------------------------------------------------- the client's bundle

DIM = 8
BOS = 0
_HIDDEN = 4
_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "my doctor told me that the test was positive",
    "please write a short answer to this letter",
)


def make_tokenizer(extra: tuple[str, ...] = ()) -> bytes:
    """Train a byte-level BPE of 300 tokens; return its tokenizer.json."""
    return byte_level_bpe(_TEXT + extra, 300, ("<s>",)).to_str().encode()


def make_bundle(
    path: Path,
    *,
    names: tuple[str, str] = ("strict", "open"),
    tokenizer_json: bytes | None = None,
    rows: int | None = None,
    table_seed: int = 1,
    ratio_numerator: int = 1 << 29,
    norm_limit: float = 1.0,
    bos_token_id: int | None = BOS,
    chat: ChatFormat | None = None,
) -> ClientBundle:
    """Write a bundle with a random table and variants of 2 and 4 bits; load its client part."""
    tokenizer_json = tokenizer_json or make_tokenizer()
    rows = rows or Tokenizer.from_str(tokenizer_json.decode()).get_vocab_size()
    table = np.random.default_rng(table_seed).integers(-32767, 32768, size=(rows, DIM)).astype(np.int16)
    variants = [
        make_variant(
            name,
            bits=bits,
            ratio_numerator=ratio_numerator,
            weight=np.zeros((_HIDDEN, DIM), np.float32),
            norm_limit=norm_limit,
        )
        for name, bits in zip(names, (2, 4), strict=True)
    ]
    changes = {"tokenizer_json": tokenizer_json, "bos_token_id": bos_token_id, "chat": chat}
    write_bundle(path, **bundle_content(table, variants, **changes))
    return load_client(path / "client")
