"""The linear decoder of the published method: e' = D y + a'."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from del_core.decoders.base import (
    DECODERS,
    DecoderInputs,
    DecoderKind,
    DecoderOptions,
    FloatArray,
    ModelSizes,
    Shapes,
    limit_norm,
    require_coordinates,
)
from del_core.mechanism import TokenMechanism

__all__ = ["LinearDecoder", "LinearKind"]


@dataclass(frozen=True, eq=False)
class LinearDecoder:
    """e' = D y + a', with y scaled to norm at most R (docs/reference/bundle-format.md).

    ``weight`` D is (hidden size, dim), ``bias`` a' is (hidden size,), both float32; y is in units
    of the clip c.
    """

    mechanism: TokenMechanism
    weight: FloatArray
    bias: FloatArray
    norm_limit: float

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """Return the embeddings of counts; see :class:`~del_core.decoders.base.Decoder`."""
        y = limit_norm(self.mechanism.dequantize(codes), self.norm_limit)
        return y @ self.weight.T + self.bias


class LinearKind(DecoderKind):
    """The kind ``linear``. Every kind has its tensors, because audits attack through them."""

    name = "linear"
    description = "D y + a', the published decoder"
    trainable = "del_core.training.decoders.linear:TrainableLinear"
    joint = True
    continues = ("linear",)
    refits_norm_limit = True

    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        """See :class:`DecoderKind`."""
        return {"weight": (model.hidden_size, model.dim), "bias": (model.hidden_size,)}

    def new_shapes(self, model: ModelSizes, options: DecoderOptions) -> dict[str, tuple[int, ...]]:
        """See :class:`DecoderKind`."""
        return self.shapes({}, model)

    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        """See :class:`DecoderKind`."""
        return model.hidden_size * model.dim

    def build(self, inputs: DecoderInputs) -> LinearDecoder:
        """See :class:`DecoderKind`."""
        mechanism = require_coordinates(inputs.mechanism)
        return LinearDecoder(mechanism, inputs.tensors["weight"], inputs.tensors["bias"], inputs.norm_limit)


DECODERS.register(LinearKind.name, LinearKind())
