"""Request frames for the tiny bundle."""

from __future__ import annotations

from typing import Any

import numpy as np

from del_core.bundle import Bundle
from del_core.wire import MEDIA_TYPE, PrivateSegment, PublicSegment, Request, Sampling, Segment, encode_frame
from tests.support.tiny import BOS_ID, DIM, VOCABULARY_SIZE

HEADERS = {"content-type": MEDIA_TYPE}
PATH = "/v1/private/completions"


def private_segment(bundle: Bundle, variant: str, tokens: int, seed: int) -> PrivateSegment:
    """Draw the counts of random tokens by the variant's mechanism, from a seeded source."""
    generator = np.random.default_rng(seed)
    levels = np.asarray(bundle.client.table_of(variant))[generator.integers(0, VOCABULARY_SIZE, size=tokens)]
    return PrivateSegment(bundle.mechanism(variant).sample(levels, generator.bytes))


def make_request(
    bundle: Bundle,
    variant: str = "open",
    *,
    tokens: int = 20,
    seed: int = 1,
    segments: tuple[Segment, ...] | None = None,
    resume: tuple[int, ...] = (),
    sampling_seed: int | None = None,
    **sampling: Any,
) -> Request:
    """Make a request: beginning of text, a private span and a public one; all public if ``clear``.

    ``seed`` chooses the prompt; ``sampling_seed`` is the seed in the request.
    """
    if segments is None:
        generator = np.random.default_rng(seed + 1000)
        ids = tuple(int(token) for token in generator.integers(2, VOCABULARY_SIZE, size=tokens))
        body: tuple[Segment, ...] = (PublicSegment(ids),)
        if variant != "clear":
            body = (private_segment(bundle, variant, tokens, seed), PublicSegment(ids[:3]))
        segments = (PublicSegment((BOS_ID,)), *body)
    values = {"temperature": 0.0, "max_tokens": 16, "seed": sampling_seed, **sampling}
    return Request(bundle.fingerprint, variant, segments, Sampling(**values), resume)


def make_frame(bundle: Bundle, variant: str = "open", **values: Any) -> bytes:
    """Return the frame of :func:`make_request`."""
    return encode(bundle, make_request(bundle, variant, **values))


def encode(bundle: Bundle, request: Request) -> bytes:
    """Encode a request for the tiny bundle."""
    variant = bundle.variants.get(request.variant)
    return encode_frame(request, bits=variant.bits if variant else 1)


__all__ = ["DIM", "HEADERS", "PATH", "encode", "make_frame", "make_request", "private_segment"]
