"""What stages 1 and 2 share: the frozen language model, its tokenizer and the text in three disjoint parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from del_core.bundle import checksum_model
from del_core.training.text import TextError, TokenWindows, split_text, tokenize

__all__ = ["FrozenLM", "load_frozen_lm"]


@dataclass(frozen=True)
class FrozenLM:
    """A causal LM without gradients, with token ids (one dimension, int64) of the train, validation and test parts."""

    model: PreTrainedModel
    tokenizer_json: bytes
    checksum: str
    text_sha256: str
    train: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor
    bos_token_id: int | None

    @property
    def embeddings(self) -> torch.Tensor:
        """The input embedding table W, (V, b)."""
        return self.model.get_input_embeddings().weight

    def unigram(self) -> torch.Tensor:
        """Token probabilities (V,) of the training part, add-one smoothed so that none is zero."""
        counts = torch.bincount(self.train, minlength=len(self.embeddings)).double() + 1.0
        return counts / counts.sum()

    def windows(self, part: torch.Tensor, length: int, count: int) -> torch.Tensor:
        """``count`` evenly spaced windows (count, length) of one part, the same ones every time."""
        return TokenWindows(part, length, seed=0).first(count)


def load_frozen_lm(directory: Path, texts: Sequence[str], device: str = "cpu") -> FrozenLM:
    """Loads a Hugging Face causal-LM directory with its ``tokenizer.json`` and tokenizes ``texts`` for it.

    Raises:
        TextError: if a text is too short to be split.
        FileNotFoundError: if the directory lacks config.json, tokenizer.json or safetensors weights.
    """
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"model directory {directory}: {name} is missing; a Hugging Face causal LM is needed")
    tokenizer_json = (directory / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    splits = split_text(texts)
    if not (splits.train and splits.validation and splits.test):
        raise TextError("text: too short to be split into training, validation and test parts")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    model.to(device).eval().requires_grad_(False)
    bos = model.config.bos_token_id
    # Only a tokenizer that itself puts a beginning-of-sequence token in front makes it part of the prompt.
    adds_bos = bos is not None and tokenizer.encode("a").ids[:1] == [bos]
    return FrozenLM(
        model=model,
        tokenizer_json=tokenizer_json,
        checksum=checksum_model(directory),
        text_sha256=hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        train=tokenize(tokenizer, splits.train).to(device),
        validation=tokenize(tokenizer, splits.validation).to(device),
        test=tokenize(tokenizer, splits.test).to(device),
        bos_token_id=bos if adds_bos else None,
    )
