"""Shapes of language models: what their weights and their keys and values need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """A decoder with grouped-query attention.

    Args:
        parameters: of the whole model.
        weight_bytes: of one parameter, and of one number in the KV cache.
    """

    name: str
    parameters: float
    layers: int
    kv_heads: int
    head_size: int
    hidden_size: int
    weight_bytes: int = 2

    @property
    def weights(self) -> float:
        """Bytes of the weights."""
        return self.parameters * self.weight_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.weight_bytes

    @property
    def operations(self) -> float:
        """Floating-point operations for one token, without attention."""
        return 2 * self.parameters

    @classmethod
    def of_config(cls, name: str, config: Mapping[str, Any], weight_bytes: int = 2) -> ModelShape:
        """Return the shape of a Llama-like model by its config.json. Raises KeyError."""
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        head_size = config.get("head_dim") or hidden // heads
        attention = 2 * hidden * head_size * (heads + kv_heads)
        tables = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
        parameters = layers * (attention + 3 * hidden * config["intermediate_size"]) + tables
        return cls(name, parameters, layers, kv_heads, head_size, hidden, weight_bytes)


MODEL_SIZES = {
    one.name: one
    for one in (
        ModelShape("1B", 1.24e9, 16, 8, 64, 2048),
        ModelShape("3B", 3.21e9, 28, 8, 128, 3072),
        ModelShape("8B", 8.03e9, 32, 8, 128, 4096),
        ModelShape("70B", 70.6e9, 80, 8, 128, 8192),
    )
}
"""Shapes of Llama 3.1 and 3.2, whose sizes are typical."""
