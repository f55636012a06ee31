"""A tiny Llama model as a GGUF file, written with the format's own library."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

__all__ = ["HIDDEN", "VOCABULARY", "write_gguf"]

HIDDEN, HEADS, MLP, LAYERS = 32, 2, 64, 1
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,"
_BYTE_SPACE = "\u0120"  # how byte-level tokenizers spell a space
TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(_BYTE_SPACE if c == " " else c for c in _LETTERS),
    "th",
    "the",
]
MERGES = ["t h", "th e"]
VOCABULARY = len(TOKENS)


def write_gguf(path: Path, *, architecture: str = "llama", pre: str = "smollm", seed: int = 0) -> dict[str, np.ndarray]:
    """Write the file; return its tensors by their names in the format."""
    draw = np.random.default_rng(seed)

    def tensor(*shape: int) -> np.ndarray:
        return draw.normal(0.0, 0.3, shape).astype(np.float32)

    tensors = {"token_embd.weight": tensor(VOCABULARY, HIDDEN), "output_norm.weight": np.ones(HIDDEN, np.float32)}
    for layer in range(LAYERS):
        prefix = f"blk.{layer}"
        tensors |= {f"{prefix}.attn_{name}.weight": tensor(HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        tensors |= {f"{prefix}.ffn_{name}.weight": tensor(MLP, HIDDEN) for name in ("gate", "up")}
        tensors[f"{prefix}.ffn_down.weight"] = tensor(HIDDEN, MLP)
        tensors |= {f"{prefix}.{name}_norm.weight": np.ones(HIDDEN, np.float32) for name in ("attn", "ffn")}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
