"""Tiny random models of every family, with a tokenizer, and a bundle for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import processors

from del_core import accounting
from del_core.bundle import BaseModel, Guarantees, write_bundle
from del_core.lm.model import BaseLM
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.projection import Projection
from tests.support.bundle import bundle_content, make_variant
from tests.support.tokenizer import byte_level_bpe

HIDDEN_SIZE = 64
VOCABULARY_SIZE = 320
POSITIONS = 256
DIM = 32
BOS, EOS = "<s>", "</s>"
_TEXT = (
    "The patient was seen by the doctor because of a fever that would not go down for three days.",
    "She said that she had seen the sea, and that the sea had seen her: nobody believed the story.",
)
_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    # Larger than usual, so that logits differ by far more than float32 rounds.
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_HEADS_OF_32: Mapping[str, Any] = {"head_dim": 32}
# What a family's configuration has beside, or instead of, the common members.
_OWN: Mapping[str, Mapping[str, Any]] = {
    "bloom": {"n_layer": 2, "n_head": 2, "seq_length": POSITIONS},
    "cohere": {"logit_scale": 1.0},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 1, "alibi": False},
    "gemma": _HEADS_OF_32,
    "gemma2": {**_HEADS_OF_32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0, "sliding_window": 16},
    "gemma3_text": {**_HEADS_OF_32, "query_pre_attn_scalar": 32, "sliding_window": 16},
    "gpt2": {"n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS, "n_inner": 96},
    "gpt_neox": {"rotary_pct": 0.5},
    "gptj": {
        "n_embd": HIDDEN_SIZE,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": POSITIONS,
        "n_inner": 96,
        "rotary_dim": 16,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "minicpm3": {
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "scale_emb": 12,
        "dim_model_base": 32,
        "scale_depth": 1.4,
    },
    "mistral": {"sliding_window": 16, **_HEADS_OF_32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {"word_embed_proj_dim": HIDDEN_SIZE, "ffn_dim": 96, "do_layer_norm_before": True},
    "phi": {"partial_rotary_factor": 0.5},
    "qwen3": _HEADS_OF_32,
    "stablelm": {"partial_rotary_factor": 0.5},
    "starcoder2": {"sliding_window": None},
}


def make_model(model_type: str, directory: Path, seed: int = 1) -> Path:
    """Write a tiny random model of a family; its tokenizer puts a begin-of-text token in front."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory.mkdir(parents=True)
    tokenizer = byte_level_bpe(_TEXT * 4, VOCABULARY_SIZE, (BOS, EOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer.save(str(directory / "tokenizer.json"))
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **{**_COMMON, **_OWN.get(model_type, {})})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # some families start with zeros or ones, which hide mistakes
        if model_type in ("gemma2", "gemma3_text"):  # tied and scaled ones would repeat the last token
            model.get_input_embeddings().weight.mul_(0.05)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


def make_bundle(lm: BaseLM, directory: Path, name: str, seed: int = 1) -> Path:
    """Write a bundle of one variant, ``open``: principal components and a random soft prompt."""
    import torch

    vocabulary, hidden = lm.embeddings.shape
    projection = Projection.from_pca(lm.embeddings, torch.ones(vocabulary), DIM)
    mechanism = Mechanism.from_mu(60.0, bits=4, dim=DIM, max_level=MAX_LEVEL)
    soft_prompt = lm.embeddings[torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed))[:32]]
    variant = make_variant(
        "open",
        bits=4,
        ratio_numerator=mechanism.ratio_numerator,
        guarantees=Guarantees(1e-6, accounting.epsilon(mechanism, 1e-6), None, 60.0),
        weight=projection.decoder.weight.detach().numpy(),
        bias=projection.decoder.bias.detach().numpy(),
        norm_limit=2.0 * DIM**0.5,
        soft_prompt=soft_prompt.detach().numpy(),
    )
    content = bundle_content(
        projection.table(lm.embeddings, MAX_LEVEL).numpy(),
        [variant],
        base_model=BaseModel(name, lm.checksum, int(hidden), int(vocabulary)),
        max_level=MAX_LEVEL,
        clip=1.0,
        tokenizer_json=lm.tokenizer_json,
        log_prior=np.full(vocabulary, -np.log(vocabulary)),
        bos_token_id=lm.bos_token_id,
    )
    write_bundle(directory, **content)
    return directory
