"""The decoder of codes: e' = D_1[z_1] + ... + D_M[z_M], a table of embeddings for each code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from del_core.decoders.base import (
    DECODERS,
    DecoderInputs,
    DecoderKind,
    FloatArray,
    ModelSizes,
    Shapes,
    claimed_extent,
)

_MOST_CODES = 256


@dataclass(frozen=True, eq=False)
class LookupDecoder:
    """The sum of the rows that the released codes select."""

    codes: FloatArray  # D, (M, K, hidden size)

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        rows: FloatArray = self.codes[0, codes[:, 0]].copy()
        for column in range(1, len(self.codes)):
            rows += self.codes[column, codes[:, column]]
        return rows


class LookupKind(DecoderKind):
    """The kind ``lookup``, for mechanisms that release codes instead of coordinates."""

    name = "lookup"
    description = "D[z], one embedding for each released code"
    batched = "del_core.lm.decoding:BatchLookup"
    trained = True
    dequantizes = False
    of_coordinates = False

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        count = claimed_extent(claimed, "codes", 1, axes=3, most=_MOST_CODES)
        return {"codes": (model.dim, count, model.hidden_size)}

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        return 0

    def build(self, inputs: DecoderInputs) -> LookupDecoder:
        codes, count = inputs.tensors["codes"], inputs.mechanism.largest_count + 1
        if codes.shape[1] != count:
            raise ValueError(f"codes must have a row for each of the {count} codes, got {codes.shape[1]} rows")
        return LookupDecoder(codes)


DECODERS.register(LookupKind.name, LookupKind())
