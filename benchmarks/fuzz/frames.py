"""Valid frames of a bundle as seeds: every variant, few and many tokens, all sampling fields."""

from __future__ import annotations

import numpy as np

from del_core.bundle import RESERVED_VARIANT, Bundle
from del_core.wire import PrivateSegment, PublicSegment, Request, Sampling, Segment, encode_frame

__all__ = ["good_frames", "long_frame"]


def good_frames(bundle: Bundle) -> list[bytes]:
    """Return frames that the server completes with two or three tokens; reproducible."""
    generator = np.random.default_rng(20260)
    frames = []
    for variant in (*bundle.variants, RESERVED_VARIANT):
        for tokens in (1, 12):
            for stream in (False, True):
                frames.append(_frame(bundle, variant, tokens, Sampling(max_tokens=2, stream=stream), generator))
    everything = Sampling(
        max_tokens=5, temperature=0.7, top_p=0.9, seed=7, stop=("a", "bc"), stop_token_ids=(9,), ignore_eos=True
    )
    frames.append(_frame(bundle, next(iter(bundle.variants)), 3, everything, generator, resume=(5, 6)))
    return frames


def long_frame(bundle: Bundle, output_tokens: int) -> bytes:
    """Return a greedy completion of many tokens."""
    sampling = Sampling(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    return _frame(bundle, next(iter(bundle.variants)), 12, sampling, np.random.default_rng(1))


def _frame(
    bundle: Bundle,
    variant: str,
    tokens: int,
    sampling: Sampling,
    generator: np.random.Generator,
    resume: tuple[int, ...] = (),
) -> bytes:
    vocabulary = bundle.manifest.base_model.vocabulary_size
    ids = generator.integers(2, vocabulary, size=tokens)
    segments: tuple[Segment, ...] = (PublicSegment(tuple(int(one) for one in ids)),)
    bits = 1
    if variant != RESERVED_VARIANT:
        levels = np.asarray(bundle.client.table)[ids]
        segments = (PrivateSegment(bundle.mechanism(variant).sample(levels, generator.bytes)), *segments)
        bits = bundle.variants[variant].bits
    return encode_frame(Request(bundle.fingerprint, variant, segments, sampling, resume), bits=bits)
