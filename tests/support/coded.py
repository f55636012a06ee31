"""A bundle for the tiny model whose variants release one code for a token."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from del_core import accounting
from del_core.bundle import BaseModel, Bundle, Guarantees, checksum_model, load_bundle, write_bundle
from del_core.bundle.bundle import VariantContent
from del_core.bundle.manifest import Variant
from del_core.lm.model import load_base_lm
from del_core.mechanism import CategoricalMechanism, Mechanism
from del_core.mechanism.base import MechanismSpec
from tests.support.adapters import random_adapter
from tests.support.bundle import bundle_content, make_variant
from tests.support.tiny import BOS_ID, DELTA, DIM, HIDDEN_SIZE, MAX_LEVEL, SOFT_PROMPT_LENGTH, VOCABULARY_SIZE, Tiny

__all__ = ["BITS", "make_coded"]

BITS, _EPSILON = 5, 6.0


def make_coded(tiny: Tiny, path: Path) -> Bundle:
    """Write a bundle with ``open`` (counts), ``codes`` (an adapter) and ``plain`` (none)."""
    random = np.random.default_rng(tiny.seed + 1)
    counts = Mechanism.from_mu(20.0, bits=4, dim=DIM, max_level=MAX_LEVEL)
    codes = CategoricalMechanism.from_epsilon(_EPSILON, bits=BITS)

    def soft_prompt() -> np.ndarray:
        return (0.3 * random.standard_normal((SOFT_PROMPT_LENGTH, HIDDEN_SIZE))).astype(np.float16)

    def coded(name: str, rank: int | None) -> VariantContent:
        adapter = None if rank is None else random_adapter(load_base_lm(tiny.model).model, rank)
        return VariantContent(
            Variant(
                name=name,
                task="general",
                bits=BITS,
                ratio_numerator=None,
                soft_prompt_length=SOFT_PROMPT_LENGTH,
                guarantees=Guarantees(0.0, codes.epsilon, None, None),
                decoder="lookup",
                other=MechanismSpec(codes.kind, codes.parameters()),
                table="codes",
                adapter=None if adapter is None else adapter.shape,
            ),
            weight=None,
            bias=None,
            norm_limit=1.0,
            soft_prompt=soft_prompt(),
            tensors={"codes": (0.3 * random.standard_normal((1, 1 << BITS, HIDDEN_SIZE))).astype(np.float16)},
            adapter=adapter,
        )

    binomial = make_variant(
        "open",
        bits=4,
        ratio_numerator=counts.ratio_numerator,
        guarantees=Guarantees(DELTA, accounting.epsilon(counts, DELTA), None, 20.0),
        weight=0.2 * random.standard_normal((HIDDEN_SIZE, DIM)).astype(np.float32),
        norm_limit=4.0,
        soft_prompt=soft_prompt(),
    )
    content = bundle_content(
        random.integers(-MAX_LEVEL, MAX_LEVEL + 1, size=(VOCABULARY_SIZE, DIM)),
        [binomial, coded("codes", 4), coded("plain", None)],
        base_model=BaseModel("tiny-random-llama", checksum_model(tiny.model), HIDDEN_SIZE, VOCABULARY_SIZE),
        max_level=MAX_LEVEL,
        clip=1.0,
        tokenizer_json=(tiny.model / "tokenizer.json").read_bytes(),
        log_prior=np.full(VOCABULARY_SIZE, -np.log(VOCABULARY_SIZE), np.float32),
        bos_token_id=BOS_ID,
        code_tables={"codes": random.integers(0, 1 << BITS, (VOCABULARY_SIZE, 1))},
    )
    write_bundle(path, **content)
    return load_bundle(path)
