"""The interface of a decoder kind and the registry of kinds. Requires only numpy.

Decoding is post-processing and costs no privacy (Dwork and Roth, "The Algorithmic Foundations of
Differential Privacy", proposition 2.1). docs/reference/kinds.md lists the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from del_core.mechanism import TokenMechanism
from del_core.registry import Registry

FloatArray = npt.NDArray[np.float32]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


class Decoder(Protocol):
    """A map from one private segment's counts to embeddings. Row i depends on rows 0 to i only."""

    def decode(self, codes: npt.NDArray[np.uint8]) -> FloatArray:
        """Return float32 embeddings (tokens, hidden size) of counts ``codes`` (tokens, dim)."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that the bundle's manifest fixes for every decoder."""

    hidden_size: int
    dim: int
    vocabulary_size: int


@dataclass(frozen=True)
class DecoderOptions:
    """Sizes of a new decoder's network, if its kind has one; ``width`` None is its default."""

    width: int | None = None
    layers: int = 2


@dataclass(frozen=True, eq=False)
class DecoderInputs:
    """The parts from which a decoder is built."""

    mechanism: TokenMechanism
    table: npt.NDArray[np.integer[Any]]  # levels (V, columns)
    log_prior: FloatArray  # natural-log token frequencies (V,)
    norm_limit: float  # R, the largest norm of a dequantized row
    tensors: Mapping[str, FloatArray]  # arrays of the kind, float32


class DecoderKind(ABC):
    """A kind of decoder: its tensors, its decoder for serving and its class for training."""

    name: ClassVar[str]
    description: ClassVar[str]
    """Phrase for command-line help and documentation."""
    trainable: ClassVar[str] = ""
    """``module:class`` of the torch twin, named so that clients and servers do not load torch."""
    batched: ClassVar[str] = ""
    """``module:class`` of the decoder on the model's device (:mod:`del_core.lm.decoding`); empty
    for the numpy decoder."""
    of_coordinates: ClassVar[bool] = True
    """Stage 2 trains it on noisy coordinates of a projected table."""
    trained: ClassVar[bool] = False
    """Stage 2 trains parameters of the decoder itself, so it can go without a soft prompt."""
    dequantizes: ClassVar[bool] = True
    """The decoder needs ``mechanism.dequantize``, which not every mechanism kind has."""
    joint: ClassVar[bool] = False
    """An encoder can be trained together with a decoder of this kind."""
    continues: ClassVar[tuple[str, ...]] = ()
    """Kinds trained with an encoder from whose parameters stage 2 of this kind can start."""
    refits_norm_limit: ClassVar[bool] = False
    """The norm limit is calibrated for each noise, because no parameter was trained for one."""

    @abstractmethod
    def shapes(self, claimed: Shapes, model: ModelSizes) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that a file must hold whose header claims these shapes.

        ValueError is raised if a size that the manifest does not fix is missing or out of range.
        """

    def new_shapes(self, model: ModelSizes, options: DecoderOptions) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a new decoder; by default the model fixes all."""
        return self.shapes({}, model)

    @abstractmethod
    def multiplications(self, shapes: Shapes, model: ModelSizes) -> int:
        """Return the number of multiplications that decoding one token takes."""

    @abstractmethod
    def build(self, inputs: DecoderInputs) -> Decoder:
        """Return the decoder for serving."""


DECODERS: Registry[DecoderKind] = Registry("decoder")
"""The decoder kinds by name."""


def joint_kinds() -> list[str]:
    """Return the names of the kinds that can be trained together with an encoder."""
    return [name for name, kind in DECODERS.items() if kind.joint]


def stage2_kinds(rows: int) -> list[str]:
    """Return the kinds with which stage 2 has something to train, given its soft-prompt rows."""
    return [name for name, kind in DECODERS.items() if kind.of_coordinates and (rows or kind.trained)]


def claimed_extent(claimed: Shapes, tensor: str, axis: int, *, axes: int, most: int) -> int:
    """Return the extent, 1..most, of one axis of a tensor, as a file's header claims it."""
    shape = claimed.get(tensor)
    if shape is None:
        raise ValueError(f"tensor {tensor} must be in the file, got {', '.join(claimed) or 'none'}")
    if len(shape) != axes or not 1 <= shape[axis] <= most:
        raise ValueError(f"tensor {tensor} must have {axes} axes and axis {axis} in 1..{most}, got shape {shape}")
    return shape[axis]


def require_coordinates(mechanism: TokenMechanism) -> TokenMechanism:
    """Return ``mechanism``; raise ValueError if its counts do not stand for coordinates."""
    if not mechanism.can_dequantize:
        raise ValueError(f"mechanism must be of a kind that can be dequantized, got {mechanism.kind}")
    return mechanism


def limit_norm(y: FloatArray, limit: float) -> FloatArray:
    """Scale rows of ``y`` (tokens, dim) that are longer than ``limit`` down to that norm."""
    norms = np.linalg.norm(y, axis=1, keepdims=True)
    scale = np.minimum(1.0, limit / np.maximum(norms, np.finfo(np.float32).tiny))
    limited: FloatArray = np.multiply(y, scale, dtype=np.float32)
    return limited
