"""Adapters of random numbers, which change what a model writes."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from del_core.bundle import Adapter
from del_core.lm.adapter import attached, new_shape


def random_adapter(model: PreTrainedModel, rank: int) -> Adapter:
    """Return an adapter on all layers of ``model``, as large as their weights."""
    generator = np.random.default_rng(rank)
    shape = new_shape(model, rank)
    with attached(model, shape) as layers:
        sizes = {name: tuple(parameter.shape) for name, parameter in layers.parameters().items()}
    tensors = {name: generator.normal(scale=0.1, size=size).astype(np.float32) for name, size in sizes.items()}
    return Adapter(shape, tensors)
