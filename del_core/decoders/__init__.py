"""Decoders: from released counts to the embeddings that the language model reads."""

from del_core.decoders.base import (
    DECODERS,
    Decoder,
    DecoderInputs,
    DecoderKind,
    DecoderOptions,
    ModelSizes,
    Shapes,
    claimed_extent,
    joint_kinds,
    limit_norm,
    require_coordinates,
    stage2_kinds,
)
from del_core.decoders.linear import LinearDecoder, LinearKind
from del_core.decoders.lookup import LookupDecoder, LookupKind

__all__ = [
    "DECODERS",
    "Decoder",
    "DecoderInputs",
    "DecoderKind",
    "DecoderOptions",
    "LinearDecoder",
    "LinearKind",
    "LookupDecoder",
    "LookupKind",
    "ModelSizes",
    "Shapes",
    "claimed_extent",
    "joint_kinds",
    "limit_norm",
    "require_coordinates",
    "stage2_kinds",
]
