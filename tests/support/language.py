"""A simple language that a tiny Llama learns in seconds, for attacks that know the language."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH = 24, 16
FOLLOWS = 0.9
"""Token v + 1 follows v with this probability, any token otherwise."""

LOG_PRIOR = np.full(VOCABULARY, -math.log(VOCABULARY), np.float32)


def language(tokens: int, seed: int) -> np.ndarray:
    """Return a text (tokens,) of the language."""
    random = np.random.default_rng(seed)
    jumps = np.where(random.random(tokens) < FOLLOWS, 1, random.integers(0, VOCABULARY, tokens))
    return np.cumsum(jumps).astype(np.int64) % VOCABULARY


def prompts(count: int, seed: int) -> np.ndarray:
    """Return prompts (count, LENGTH) of the language."""
    return language(count * LENGTH, seed).reshape(count, LENGTH)


def speaker() -> LlamaForCausalLM:
    """Return a frozen tiny Llama that has learned the language."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    lm = LlamaForCausalLM(config)
    text = torch.from_numpy(language(60 * 16 * LENGTH, 1)).view(60, 16, LENGTH)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for batch in text:
        loss = lm(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5, "the model must know the language, else context adds nothing"
    return lm.eval().requires_grad_(False)
