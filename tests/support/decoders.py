"""A small decoder of any kind of coordinates: with gradients, and in a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from del_core.audit.attacks.base import reproducible_bytes
from del_core.bundle import BaseModel, Bundle, Guarantees, Variant, VariantContent, load_bundle, write_bundle
from del_core.decoders import DecoderOptions
from del_core.lm.noise import NoisyTable
from del_core.mechanism import Mechanism
from del_core.training.decoders import TrainableDecoder, TrainableInputs, new_decoder

VOCABULARY, HIDDEN, DIM, MAX_LEVEL = 300, 48, 12, 1000
MECHANISM = Mechanism(3, DIM, 0.25, max_level=MAX_LEVEL)


def make_module(kind: str, norm_limit: float = 4.0) -> TrainableDecoder:
    """Return a decoder in which every trained tensor is random, so that each has an effect."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(4)
    table = torch.randint(-MAX_LEVEL, MAX_LEVEL + 1, (VOCABULARY, DIM), generator=generator, dtype=torch.int16)
    embeddings = torch.randn(VOCABULARY, HIDDEN, generator=generator)
    unigram = torch.rand(VOCABULARY, generator=generator, dtype=torch.float64) + 0.1
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((HIDDEN, DIM), (HIDDEN,)))
    unigram /= unigram.sum()
    inputs = TrainableInputs(weight, bias, NoisyTable(table, MECHANISM), norm_limit, embeddings, unigram)
    module = new_decoder(kind, inputs, DecoderOptions(width=64))
    module.set_blend(0.3)
    module.levels, module.shipped_prior = table.numpy(), unigram.log().float().numpy()
    with torch.no_grad():
        for _, parameter in module.trained():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def make_bundle(path: Path, kind: str, **changed: np.ndarray) -> tuple[TrainableDecoder, Bundle]:
    """Write a bundle whose variant *noisy* has that decoder; return the decoder and the bundle.

    ``changed`` are tensors in place of the decoder's.
    """
    module = make_module(kind)
    variant = Variant("noisy", "general", 3, MECHANISM.ratio_numerator, 0, Guarantees(1e-6, 1.0, None, 1.0), kind)
    content = VariantContent(
        variant,
        weight=changed.pop("weight", module.weight.numpy()),
        bias=changed.pop("bias", module.bias.numpy()),
        norm_limit=module.norm_limit,
        # As float32, so that rounding to the fp16 of real bundles does not blur the comparison.
        tensors={
            **{name: module.get_parameter(name).detach().numpy() for name, _ in module.named_parameters()},
            **({} if module.values is None else {"values": module.values.numpy()}),
            **changed,
        },
    )
    write_bundle(
        path,
        base_model=BaseModel("tiny", "ab" * 32, HIDDEN, VOCABULARY),
        table=module.levels,
        max_level=MAX_LEVEL,
        clip=1.0,
        tokenizer_json=b'{"version": "1.0"}',
        variants=[content],
        log_prior=module.shipped_prior,
    )
    return module, load_bundle(path)


def draw_codes(tokens: int, seed: int = 0) -> np.ndarray:
    """Return the counts (tokens, DIM) of a private segment."""
    levels = np.random.default_rng(seed).integers(-MAX_LEVEL, MAX_LEVEL + 1, (tokens, DIM))
    return MECHANISM.sample(levels, reproducible_bytes(seed))
