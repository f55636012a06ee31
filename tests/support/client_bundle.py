"""Makes the small bundles that the client's tests run on: a BPE tokenizer trained here and a random table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from del_core.bundle import (
    BaseModel,
    ClientBundle,
    Guarantees,
    Variant,
    VariantContent,
    load_client,
    write_bundle,
)

__all__ = ["BOS", "DIM", "make_bundle", "make_tokenizer"]

DIM = 8
BOS = 0
_HIDDEN = 4
_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "my doctor told me that the test was positive",
    "please write a short answer to this letter",
)


def make_tokenizer(extra: tuple[str, ...] = ()) -> bytes:
    """A byte-level BPE of 300 tokens, as tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT + extra, trainer)
    return tokenizer.to_str().encode()


def make_bundle(path: Path, **changes: Any) -> ClientBundle:
    """Write a bundle and load its client part.

    ``changes``: table_seed, ratio_numerator, norm_limit (server side only), bos_token_id, tokenizer_json, rows,
    names (of the variants with 2 and 4 bits).
    """
    tokenizer_json = changes.get("tokenizer_json") or make_tokenizer()
    rows = changes.get("rows") or Tokenizer.from_str(tokenizer_json.decode()).get_vocab_size()
    generator = np.random.default_rng(changes.get("table_seed", 1))
    table = generator.integers(-32767, 32768, size=(rows, DIM)).astype(np.int16)
    contents = [
        VariantContent(
            variant=Variant(
                name=name,
                task="general",
                bits=bits,
                ratio_numerator=changes.get("ratio_numerator", 1 << 29),
                soft_prompt_length=0,
                guarantees=Guarantees(delta=1e-6, epsilon=2.5, epsilon_vocabulary=None, mu=1.0),
            ),
            weight=np.zeros((_HIDDEN, DIM), np.float32),
            bias=np.zeros(_HIDDEN, np.float32),
            norm_limit=changes.get("norm_limit", 1.0),
        )
        for name, bits in zip(changes.get("names", ("strict", "open")), (2, 4), strict=True)
    ]
    write_bundle(
        path,
        base_model=BaseModel(name="test", sha256="0" * 64, hidden_size=_HIDDEN, vocabulary_size=rows),
        table=table,
        max_level=32767,
        clip=1.0,
        tokenizer_json=tokenizer_json,
        variants=contents,
        log_prior=np.full(rows, -np.log(rows), np.float32),
        bos_token_id=changes.get("bos_token_id", BOS),
    )
    return load_client(path / "client")
