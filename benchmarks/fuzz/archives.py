"""A small bundle, and archives of client parts that are consistent, whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from del_core.bundle import (
    BaseModel,
    ChatFormat,
    ClientBundle,
    Guarantees,
    Variant,
    VariantContent,
    canonical_json,
    write_bundle,
)
from del_core.bundle.archive import pack
from del_core.bundle.manifest import MANIFEST, FileEntry
from del_core.mechanism import CategoricalMechanism, MechanismSpec

__all__ = ["forged_archive", "packed", "small_bundle"]

_DIM, _HIDDEN = 8, 4
_CODES = CategoricalMechanism.from_epsilon(6.0, bits=3)
_TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"


def small_bundle(path: Path) -> Path:
    """Write a bundle of 256 tokens, one for each byte; return its client part.

    It has a chat template, and its variants are "open" and "codes", which reads a table of codes.
    Verifying it takes a millisecond, so that thousands of answers may be bundles.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    rows = len(alphabet)
    guarantees = Guarantees(delta=1e-6, epsilon=2.5, epsilon_vocabulary=None, mu=1.0)
    variant = Variant("open", "general", bits=4, ratio_numerator=1 << 29, soft_prompt_length=0, guarantees=guarantees)
    coded = replace(
        variant,
        name="codes",
        bits=_CODES.bits,
        ratio_numerator=None,
        guarantees=Guarantees(delta=0.0, epsilon=_CODES.epsilon, epsilon_vocabulary=None, mu=None),
        decoder="lookup",
        other=MechanismSpec(_CODES.kind, _CODES.parameters()),
        table="k-8",
    )
    rows_of_codes = np.zeros((_CODES.dim, _CODES.codes, _HIDDEN), np.float32)
    write_bundle(
        path,
        base_model=BaseModel("fuzz", "0" * 64, hidden_size=_HIDDEN, vocabulary_size=rows),
        table=np.random.default_rng(0).integers(-32767, 32768, size=(rows, _DIM)).astype(np.int16),
        max_level=32767,
        clip=1.0,
        tokenizer_json=tokenizer.to_str().encode(),
        variants=[
            VariantContent(
                variant, np.zeros((_HIDDEN, _DIM), np.float32), np.zeros(_HIDDEN, np.float32), norm_limit=1.0
            ),
            VariantContent(coded, None, None, norm_limit=1.0, tensors={"codes": rows_of_codes}),
        ],
        log_prior=np.full(rows, -np.log(rows), np.float32),
        code_tables={"k-8": np.random.default_rng(1).integers(0, _CODES.codes, (rows, _CODES.dim))},
        chat=ChatFormat(_TEMPLATE, {"eos_token": "."}, (46,)),
    )
    return path / "client"


def forged_archive(bundle: ClientBundle, files: Mapping[str, bytes], chat: ChatFormat | None = None) -> bytes:
    """Return the archive of a client part with other files or another chat, and right digests."""
    contents = {name: (bundle.path / name).read_bytes() for name in bundle.manifest.client_files if name != MANIFEST}
    contents |= files
    entries = {name: FileEntry.of(data) for name, data in contents.items()}
    manifest = replace(bundle.manifest, files=entries, chat=chat or bundle.manifest.chat).sealed()
    return packed(manifest.client_json(), contents)


def packed(manifest: Mapping[str, Any], contents: Mapping[str, bytes]) -> bytes:
    """Return the archive of a manifest, which need not be valid, and of the files beside it."""
    return pack([(MANIFEST, canonical_json(manifest)), *contents.items()])
