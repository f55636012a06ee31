"""Low-rank adapters of the frozen LM (LoRA; arXiv 2106.09685), one for a variant.

The layers are those of ``peft``, and the tensors have the names of its files, which vLLM reads. An
adapter reads what the server received, so it is post-processing: it changes no guarantee.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from del_core.bundle import Adapter, AdapterShape
from del_core.errors import DelError

ADAPTED = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
"""Names of the linear layers of attention and feed-forward networks in Llama and its relatives."""

_PREFIX = "base_model.model."  # of the names in a file of peft
_PEFT = "default"  # peft's name of the adapter inside a model


class AdapterError(DelError):
    """The LM cannot have the adapter, or the adapter is of another LM."""


class AttachedAdapter:
    """An adapter inside a model, whose parameters may be trained."""

    def __init__(self, model: PreTrainedModel, shape: AdapterShape) -> None:
        self.shape, self._model = shape, model

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return A and B of every layer by the names of a file of ``peft``."""
        return {
            _PREFIX + name.replace(f".{_PEFT}.", "."): parameter
            for name, parameter in self._model.named_parameters()
            if f".{_PEFT}." in name
        }

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the model compute without the adapter while the context lasts."""
        layers = [layer for layer in self._model.modules() if isinstance(layer, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    def detached(self) -> Adapter:
        """Return a copy in float16."""
        found = {name: value.detach().cpu().half().numpy() for name, value in self.parameters().items()}
        return Adapter(self.shape, dict(sorted(found.items())))


def new_shape(model: PreTrainedModel, rank: int) -> AdapterShape:
    """Return the shape of an adapter on all layers of ``model`` that can have one."""
    linear = {name.rpartition(".")[2] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    modules = tuple(name for name in ADAPTED if name in linear)
    if not modules:
        raise AdapterError(f"model must have linear layers named {', '.join(ADAPTED)} for an adapter, got none")
    return AdapterShape(rank, 2 * rank, modules)


@contextlib.contextmanager
def attached(model: PreTrainedModel, shape: AdapterShape) -> Iterator[AttachedAdapter]:
    """Put a new adapter into the layers of ``model`` while the context lasts. B starts as zero."""
    config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=list(shape.modules), bias="none")
    tuner = LoraModel(model, config, _PEFT)
    try:
        yield AttachedAdapter(model, shape)
    finally:
        tuner.unload()
        for name in ("peft_config", "active_adapter"):  # peft leaves them on the model
            if name in vars(model):
                delattr(model, name)


@contextlib.contextmanager
def adapted(model: PreTrainedModel, adapter: Adapter | None) -> Iterator[None]:
    """Let ``model`` answer with a trained adapter, or as it is, while the context lasts."""
    if adapter is None:
        yield
        return
    with attached(model, adapter.shape) as layers:
        load_tensors(layers, adapter.tensors)
        yield


@torch.no_grad()
def merge(model: PreTrainedModel, adapter: Adapter) -> None:
    """Add a trained adapter to the weights of ``model``, which then answers with it for good.

    The sum is rounded once, to the dtype of the weights. Raises AdapterError.
    """
    with attached(model, adapter.shape) as layers:
        load_tensors(layers, adapter.tensors)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.merge()


@torch.no_grad()
def start_from(layers: AttachedAdapter, adapter: Adapter) -> None:
    """Let an attached adapter begin as a trained one, which may have another rank.

    Of a larger rank, each layer's product keeps its largest singular values: the nearest product of
    the own rank in the Frobenius norm (Eckart and Young, 1936). Raises AdapterError.
    """
    own, rank = layers.parameters(), layers.shape.rank
    _check_names(own, adapter.tensors)
    scale = adapter.shape.alpha / adapter.shape.rank * rank / layers.shape.alpha
    for name in own:
        if ".lora_A." not in name:
            continue
        pair = name, name.replace(".lora_A.", ".lora_B.")
        a, b = (torch.from_numpy(np.array(adapter.tensors[one], dtype=np.float32)) for one in pair)
        a, b = _of_rank(a, scale * b, rank)
        own[pair[0]][: len(a)], own[pair[1]][:, : len(a)] = a.to(own[name].device), b.to(own[name].device)


def _check_names(own: Mapping[str, object], given: Mapping[str, object]) -> None:
    if own.keys() != given.keys():
        other = min(own.keys() ^ given.keys())
        raise AdapterError(f"adapter must have the tensors of the model's layers, got others: {other}")


def _of_rank(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in) and B (out, rank) whose product is nearest to ``b @ a``."""
    if len(a) <= rank:
        return a, b
    (left, upper), (right, lower) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(upper @ lower.T)
    roots = values[:rank].sqrt()
    return roots[:, None] * (right @ v.T[:, :rank]).T, left @ u[:, :rank] * roots


@torch.no_grad()
def load_tensors(layers: AttachedAdapter, tensors: Mapping[str, NDArray[np.floating[Any]]]) -> None:
    """Give an attached adapter the values of trained tensors. Raises AdapterError."""
    own = layers.parameters()
    _check_names(own, tensors)
    for name, parameter in own.items():
        value = torch.from_numpy(np.array(tensors[name], dtype=np.float32))
        if value.shape != parameter.shape:
            raise AdapterError(f"{name} must have shape {tuple(parameter.shape)}, got {tuple(value.shape)}")
        parameter.copy_(value)
