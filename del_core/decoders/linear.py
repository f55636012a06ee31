"""The linear decoder of the published method: e' = D y + a'."""

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
    limit_norm,
    require_coordinates,
)
from del_core.mechanism import TokenMechanism


@dataclass(frozen=True, eq=False)
class LinearDecoder:
    """e' = D y + a', with y in units of the clip c and scaled to norm at most R."""

    mechanism: TokenMechanism
    weight: FloatArray  # D, (hidden size, dim)
    bias: FloatArray  # a', (hidden size,)
    norm_limit: float

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        y = limit_norm(self.mechanism.dequantize(codes), self.norm_limit)
        return y @ self.weight.T + self.bias


class LinearKind(DecoderKind):
    """The kind ``linear``. Every kind has its tensors, because audits attack through them."""

    name = "linear"
    description = "D y + a', the published decoder"
    batched = "del_core.lm.decoding:BatchLinear"
    trainable = "del_core.training.decoders:TrainableLinear"
    joint = True
    continues = ("linear",)
    refits_norm_limit = True

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        return {"weight": (model.hidden_size, model.dim), "bias": (model.hidden_size,)}

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        return model.hidden_size * model.dim

    def build(self, inputs: DecoderInputs) -> LinearDecoder:
        mechanism = require_coordinates(inputs.mechanism)
        return LinearDecoder(mechanism, inputs.tensors["weight"], inputs.tensors["bias"], inputs.norm_limit)


DECODERS.register(LinearKind.name, LinearKind())
