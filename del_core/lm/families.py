"""The families of causal language models: which are served, and how each reads its embeddings.

A family is what config.json calls ``model_type``. The registry is the only place that names
families: the check of a model, the rows that the server reads from the weights, the attention of
training, the documentation's table and the tests of all families come from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from del_core.registry import Registry

Config = Mapping[str, Any]
"""The content of config.json."""


@dataclass(frozen=True)
class Family:
    """A family of models that is served.

    Args:
        label: the name that people know it by.
        row_scale: the factor by which the family's embedding layer multiplies the rows of its
            weight, from the configuration; None for a layer that returns them as they are. A factor
            that is applied to embeddings and ids alike, outside the layer, does not belong here.
        note: what a user of the family should know, for the documentation.
    """

    label: str
    row_scale: Callable[[Config], float] | None = None
    note: str = ""


FAMILIES: Registry[Family] = Registry("model_type")


def _sqrt_of_width(config: Config) -> float:
    return float(config["hidden_size"]) ** 0.5


def _scale_emb(config: Config) -> float:
    return float(config.get("scale_emb", 12))


_SCALED: Final = "the embedding layer scales its rows"
for _model_type, _family in {
    "bloom": Family("Bloom"),
    "cohere": Family("Cohere Command R"),
    "falcon": Family("Falcon"),
    "gemma": Family("Gemma", _sqrt_of_width, note=_SCALED),
    "gemma2": Family("Gemma 2", _sqrt_of_width, note=f"{_SCALED}; attention scores are capped"),
    "gemma3_text": Family("Gemma 3 (text)", _sqrt_of_width, note=_SCALED),
    "gpt2": Family("GPT-2"),
    "gpt_neox": Family("GPT-NeoX, Pythia"),
    "gptj": Family("GPT-J"),
    "granite": Family("Granite"),
    "llama": Family("Llama, SmolLM"),
    "minicpm3": Family("MiniCPM3", _scale_emb, note=_SCALED),
    "mistral": Family("Mistral"),
    "mixtral": Family("Mixtral"),
    "nemotron": Family("Nemotron"),
    "olmo2": Family("OLMo 2"),
    "opt": Family("OPT"),
    "phi": Family("Phi"),
    "phi3": Family("Phi-3"),
    "qwen2": Family("Qwen2"),
    "qwen3": Family("Qwen3"),
    "stablelm": Family("StableLM"),
    "starcoder2": Family("StarCoder2"),
}.items():
    FAMILIES.register(_model_type, _family)


def row_scale(config: Config, dtype: str = "float32") -> float:
    """Return the factor between the embedding weight of a model and the rows that it reads.

    transformers and vLLM keep the factor in the type of the model, so ``dtype`` (float32, bfloat16
    or float16) rounds it.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or family.row_scale is None:
        return 1.0
    scale = np.float32(family.row_scale(config))
    if dtype == "float16":
        return float(np.float16(scale))
    if dtype == "bfloat16":
        # The upper half of a float32, rounded to nearest even.
        bits = int(scale.view(np.uint32))
        return float(np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32))
    return float(scale)


def attention_for(config: Config) -> str | None:
    """Return the implementation of attention to train with; None is the library's choice.

    The faster ones leave out the cap on attention scores that some models were trained with, and
    that the engine applies.
    """
    return "eager" if config.get("attn_logit_softcapping") else None
