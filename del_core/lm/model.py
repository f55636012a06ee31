"""The frozen language model, its tokenizer and the three disjoint parts of a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from del_core.bundle import checksum_model
from del_core.errors import DelError
from del_core.lm.check import check_model
from del_core.lm.device import check_device
from del_core.lm.families import attention_for
from del_core.lm.text import HELD_OUT, TextError, TokenWindows, split_text, tokenize
from del_core.prompts import begin_of_text_id


class ModelError(DelError):
    """A model directory, or something trained for it, is incomplete or does not fit."""


@dataclass(frozen=True)
class BaseLM:
    """A causal LM without gradients, with its entries of a bundle's manifest."""

    model: PreTrainedModel
    tokenizer_json: bytes
    checksum: str
    bos_token_id: int | None

    @cached_property
    def embeddings(self) -> torch.Tensor:
        """The rows that the model reads for its tokens, (V, b): the output of its embedding layer.

        Some families scale inside that layer, so the rows are not always those of its weight.
        """
        layer = self.model.get_input_embeddings()
        if type(layer) is torch.nn.Embedding:
            return layer.weight
        with torch.no_grad():
            return layer(torch.arange(layer.num_embeddings, device=layer.weight.device))

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids of the model's end-of-text tokens; instruct models often have several."""
        end: Any = self.model.config.eos_token_id
        return () if end is None else (end,) if isinstance(end, int) else tuple(end)

    def begin(self, rows: torch.Tensor) -> torch.Tensor:
        """Return prompts (N, T, b) behind the begin-of-text row, if the bundle's clients send one.

        Every prompt of training, calibration and evaluation passes here; a soft prompt goes before.
        """
        if self.bos_token_id is None:
            return rows
        start = self.embeddings[self.bos_token_id].to(rows.dtype)
        return torch.cat([start.expand(len(rows), 1, -1), rows], dim=1)


@dataclass(frozen=True)
class FrozenLM(BaseLM):
    """A frozen LM with the token ids (one dimension, int64) of the parts of a text."""

    text_sha256: str
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor

    def unigram(self) -> torch.Tensor:
        """Return token probabilities (V,) of the training part, add-one smoothed."""
        counts = torch.bincount(self.train, minlength=len(self.embeddings)).double() + 1.0
        return counts / counts.sum()

    def frequent_rows(self, rows: int) -> torch.Tensor:
        """Return embeddings (rows, b) of the most frequent tokens (Lester et al., 2021, 3.2)."""
        return self.embeddings[self.unigram().topk(rows).indices.to(self.embeddings.device)].detach().clone()

    def windows(self, part: torch.Tensor, length: int, count: int) -> torch.Tensor:
        """Return ``count`` evenly spaced windows (count, length) of one part, always the same."""
        return TokenWindows(part, length, seed=0).first(count)


def load_base_lm(directory: Path, device: str = "cpu") -> BaseLM:
    """Load a Hugging Face causal-LM directory with its ``tokenizer.json``.

    ModelError is raised if the directory lacks config.json or tokenizer.json or has a problem that
    :func:`check_model` finds, BundleError if it lacks safetensors weights, DeviceError if there is
    no such device.
    """
    place = check_device(device)
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise ModelError(f"model directory must hold {name} of a causal LM, got none in {directory}")
    has_weights = any(directory.glob("*.safetensors"))  # without them the checksum is refused
    if has_weights and (problems := check_model(directory)):
        raise ModelError(f"model {directory}: {' '.join(problems)}")
    tokenizer_json = (directory / "tokenizer.json").read_bytes()
    checksum = checksum_model(directory)
    attention = attention_for(json.loads((directory / "config.json").read_bytes()))
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, attn_implementation=attention
    )
    model.to(place).eval().requires_grad_(False)
    begin = begin_of_text_id(Tokenizer.from_str(tokenizer_json.decode()))
    return BaseLM(model, tokenizer_json, checksum, begin)


def load_frozen_lm(
    directory: Path, texts: Sequence[str], device: str = "cpu", *, held_out: float = HELD_OUT
) -> FrozenLM:
    """Load an LM by ``load_base_lm`` and tokenize ``texts``, split by ``split_text``."""
    splits = split_text(texts, held_out)
    if not (splits.train and splits.validation and splits.test):
        raise TextError("text must be long enough for training, validation and test parts, got too little of it")
    lm = load_base_lm(directory, device)
    tokenizer = Tokenizer.from_str(lm.tokenizer_json.decode())
    return FrozenLM(
        **{item.name: getattr(lm, item.name) for item in fields(lm)},
        text_sha256=hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        train=tokenize(tokenizer, splits.train).to(device),
        validation=tokenize(tokenizer, splits.validation).to(device),
        test=tokenize(tokenizer, splits.test).to(device),
    )
