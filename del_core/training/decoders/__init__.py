"""Decoders with gradients: the torch twin of each kind in :mod:`del_core.decoders`."""

from del_core.training.decoders.base import TrainableDecoder, TrainableInputs, new_decoder

__all__ = ["TrainableDecoder", "TrainableInputs", "new_decoder"]
