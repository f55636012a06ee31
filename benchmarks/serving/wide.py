"""Models of real widths with few layers, and their bundles, for ``benchmarks.serving --width``.

The weights are random bfloat16 numbers in the shapes of a Llama: what is measured is the cost of
the stack, not what a model says. The bundle has one variant for each decoder kind that ships and
for each of the comparison (:mod:`benchmarks.posterior_decoders`), none of them trained; the table
is a random projection of the embeddings.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.posterior_decoders import COMPARED
from del_core import accounting
from del_core.bundle import BaseModel, Guarantees, Variant, VariantContent, checksum_model, write_bundle
from del_core.decoders import DECODERS, DecoderKind, DecoderOptions, ModelSizes
from del_core.mechanism import CategoricalMechanism, Mechanism
from del_core.mechanism.base import MechanismSpec

__all__ = ["BITS", "DECODER_KINDS", "DIM", "SHIPPED", "SOFT_ROWS", "WIDTHS", "Width", "make_wide"]

DIM, BITS, SOFT_ROWS = 128, 4, 32
_MU = 10.0
"""Noise of the variants: an epsilon close to that of SmolLM2's *balanced*."""
_CODE_BITS, _CODE_EPSILON = 8, 8.0
_MAX_LEVEL, _DELTA = 127, 1e-6
SHIPPED = ("linear", "lookup")
"""The decoder kinds that ship."""
DECODER_KINDS = (*SHIPPED, *COMPARED)
"""The kinds that are measured; each is the name of a variant."""
_SPREAD = 0.02
"""Deviation of the weights."""
_BLOCK_ROWS = 8192
_SEED = 24
_Bits = NDArray[np.uint16]


@dataclass(frozen=True)
class Width:
    """Sizes of a model: those of one layer of the named one."""

    of: str
    hidden: int
    vocabulary: int
    intermediate: int
    heads: int
    kv_heads: int


WIDTHS = {
    576: Width("SmolLM2-135M", 576, 49_152, 1_536, 9, 3),
    2048: Width("Llama-3.2-1B", 2_048, 128_256, 8_192, 32, 8),
    4096: Width("Llama-3.1-8B", 4_096, 128_256, 14_336, 32, 8),
}
"""The widths that are measured, by hidden size."""


def make_wide(directory: Path, width: Width, *, layers: int, positions: int) -> tuple[Path, Path]:
    """Write a model and its bundle below ``directory``; return their paths."""
    model, bundle = directory / "model", directory / "bundle"
    model.mkdir(parents=True)
    table = _write_model(model, width, layers, positions)
    _write_bundle(bundle, model, width, table)
    return model, bundle


def _write_model(model: Path, width: Width, layers: int, positions: int) -> NDArray[Any]:
    """Write config, tokenizer and weights; return the table's levels (V, DIM)."""
    import torch
    from safetensors.torch import save_file

    from tests.support.tokenizer import byte_level_bpe

    # A small tokenizer: ids beyond it have no text, which changes no cost of the model.
    byte_level_bpe(["a b"], 260, ("<s>", "</s>")).save(str(model / "tokenizer.json"))
    random = np.random.default_rng(_SEED)

    def weight(*shape: int) -> torch.Tensor:
        return torch.from_numpy(_bits(shape, _SPREAD, _BFLOAT16, random).view(np.int16)).view(torch.bfloat16)

    hidden, head = width.hidden, width.hidden // width.heads
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (width.kv_heads * head, hidden),
        "self_attn.v_proj": (width.kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (width.intermediate, hidden),
        "mlp.up_proj": (width.intermediate, hidden),
        "mlp.down_proj": (hidden, width.intermediate),
    }
    embeddings = weight(width.vocabulary, hidden)
    tensors = {"model.embed_tokens.weight": embeddings, "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16)}
    for layer in range(layers):
        tensors |= {f"model.layers.{layer}.{name}.weight": weight(*shape) for name, shape in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": width.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": width.intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": width.heads,
        "num_key_value_heads": width.kv_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (model / "config.json").write_text(json.dumps(config))
    # Rows of deviation 1/3 of the clip in every coordinate.
    projection = random.standard_normal((hidden, DIM), np.float32) / np.float32(3 * _SPREAD * hidden**0.5)
    levels = [
        (rows.float() @ torch.from_numpy(projection)).clamp_(-1, 1).mul_(_MAX_LEVEL).round_().to(torch.int8)
        for rows in embeddings.split(_BLOCK_ROWS)
    ]
    table: NDArray[Any] = torch.cat(levels).numpy()
    return table


def _write_bundle(bundle: Path, model: Path, width: Width, table: NDArray[Any]) -> None:
    random = np.random.default_rng(_SEED)
    checksum = checksum_model(model)
    write_bundle(
        bundle,
        base_model=BaseModel(f"random, one layer as {width.of}", checksum, width.hidden, width.vocabulary),
        table=table,
        max_level=_MAX_LEVEL,
        clip=1.0,
        tokenizer_json=(model / "tokenizer.json").read_bytes(),
        variants=[_variant(DECODERS[name], width, random) for name in DECODER_KINDS],
        log_prior=np.full(width.vocabulary, -np.log(width.vocabulary), np.float32),
        bos_token_id=0,
        code_tables={"codes": random.integers(0, 1 << _CODE_BITS, (width.vocabulary, 1))},
    )


def _variant(kind: DecoderKind, width: Width, random: np.random.Generator) -> VariantContent:
    """Make a variant with an untrained decoder."""
    fields: dict[str, Any] = {"bits": BITS}
    if kind.of_coordinates:
        mechanism = Mechanism.from_mu(_MU, bits=BITS, dim=DIM, max_level=_MAX_LEVEL)
        fields["ratio_numerator"] = mechanism.ratio_numerator
        guarantees = Guarantees(_DELTA, accounting.epsilon(mechanism, _DELTA), None, _MU)
        shapes = kind.new_shapes(ModelSizes(width.hidden, DIM, width.vocabulary), DecoderOptions())
    else:
        codes = CategoricalMechanism.from_epsilon(_CODE_EPSILON, bits=_CODE_BITS)
        spec = MechanismSpec(codes.kind, codes.parameters())
        fields = {"bits": _CODE_BITS, "ratio_numerator": None, "other": spec, "table": "codes"}
        guarantees = Guarantees(0.0, codes.epsilon, None, None)
        shapes = {"codes": (1, 1 << _CODE_BITS, width.hidden)}
    tensors = {key: _random(shape, random) for key, shape in shapes.items()}
    soft_prompt = _bits((SOFT_ROWS, width.hidden), _SPREAD, _FLOAT16, random).view(np.float16)
    return VariantContent(
        Variant(
            name=kind.name,
            task="general",
            soft_prompt_length=SOFT_ROWS,
            guarantees=guarantees,
            decoder=kind.name,
            **fields,
        ),
        weight=tensors.pop("weight", None),
        bias=tensors.pop("bias", None),
        norm_limit=4.0,
        soft_prompt=soft_prompt,
        tensors=tensors,
    )


@dataclass(frozen=True)
class _Format:
    """A type of 16-bit floats: the bits of the mantissa and the exponent of 1."""

    mantissa: int
    one: int


_BFLOAT16, _FLOAT16 = _Format(7, 127), _Format(10, 15)


def _bits(shape: tuple[int, ...], spread: float, form: _Format, random: np.random.Generator) -> _Bits:
    """Return random floats as uint16: signed, of uniform magnitude within a power of two.

    They have a deviation of ``spread`` within a factor of root 2, and take a tenth of the time of
    normal numbers: a model has up to 10^9 of them.
    """
    # The root mean square of a uniform number in [1, 2) is 1.53.
    exponent = round(math.log2(spread / 1.53)) + form.one
    bits = np.frombuffer(random.bytes(2 * math.prod(shape)), np.uint16).copy()
    bits &= 0x8000 | ((1 << form.mantissa) - 1)
    bits |= exponent << form.mantissa
    return bits.reshape(shape)


def _random(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float16]:
    """Return float16 numbers of deviation 1 over the root of the last axis."""
    return _bits(shape, shape[-1] ** -0.5, _FLOAT16, random).view(np.float16)
