"""Decoders on the model's device: many segments at once, the counterparts of those in numpy.

An engine decodes with them in the process that holds the model. All arithmetic is float32, also for
a model of 16-bit numbers, so that the rows are those of :mod:`del_core.decoders` within rounding.
A kind names its class here (``DecoderKind.batched``); a kind without one is decoded by its numpy
decoder, segment by segment.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from del_core.decoders import Decoder, DecoderInputs, DecoderKind
from del_core.lm.noise import limit_norm
from del_core.mechanism import Mechanism

__all__ = ["BatchDecoder", "CoordinatesDecoder", "batch_decoder"]


class BatchDecoder(Protocol):
    """A map from the counts of several private segments to embeddings."""

    @property
    def context(self) -> int:
        """The number of earlier rows of its segment on which a row depends."""

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return float32 embeddings (tokens, hidden size) of counts ``codes`` (tokens, dim), uint8.

        The segments are one after the other; ``lengths`` are their numbers of tokens.
        """


def batch_decoder(kind: DecoderKind, inputs: DecoderInputs, device: torch.device) -> BatchDecoder:
    """Return the decoder of a kind, on inputs that ``DecoderKind.build`` accepts."""
    # Another mechanism's coordinates and likelihood are known to its own methods only.
    if kind.batched and (not kind.dequantizes or isinstance(inputs.mechanism, Mechanism)):
        decoder: BatchDecoder = pkgutil.resolve_name(kind.batched)(inputs, device)
        return decoder
    return _OnHost(kind.build(inputs), device)


class _OnHost:
    """The numpy decoder of a kind that has no other."""

    context = sys.maxsize  # not known

    def __init__(self, decoder: Decoder, device: torch.device) -> None:
        self._decoder, self._device = decoder, device

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        segments = np.split(codes.cpu().numpy(), np.cumsum(lengths)[:-1])
        rows = [torch.from_numpy(self._decoder.decode(segment)) for segment in segments]
        return torch.cat(rows).to(self._device)


class BatchLookup:
    """The sum of the rows that the released codes select."""

    context = 0

    def __init__(self, inputs: DecoderInputs, device: torch.device) -> None:
        self._codes = _tensor(inputs, "codes", device)  # (M, K, b)

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        picked = codes.long()
        rows = self._codes[0, picked[:, 0]]
        for column in range(1, len(self._codes)):
            rows = rows + self._codes[column, picked[:, column]]
        return rows


class CoordinatesDecoder:
    """Base of the decoders that read y, the limited coordinates; a row depends on itself alone."""

    context = 0

    def __init__(self, inputs: DecoderInputs, device: torch.device) -> None:
        mechanism = inputs.mechanism
        counts = np.arange(mechanism.largest_count + 1, dtype=np.uint8)
        values = mechanism.dequantize(np.repeat(counts[:, None], mechanism.dim, axis=1))
        self._values_of_counts = torch.from_numpy(values[:, 0].copy()).to(device)
        self._norm_limit = inputs.norm_limit

    def limited(self, codes: torch.Tensor) -> torch.Tensor:
        """Return y (tokens, dim) of counts ``codes`` (tokens, dim), its norm at most R."""
        return limit_norm(self._values_of_counts[codes.long()], self._norm_limit)


class BatchLinear(CoordinatesDecoder):
    """e' = D y + a'."""

    def __init__(self, inputs: DecoderInputs, device: torch.device) -> None:
        super().__init__(inputs, device)
        self._weight, self._bias = (_tensor(inputs, name, device) for name in ("weight", "bias"))

    def decode(self, codes: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        return functional.linear(self.limited(codes), self._weight, self._bias)


def _tensor(inputs: DecoderInputs, name: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(inputs.tensors[name]).to(device)
