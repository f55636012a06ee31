"""A tiny random base model and its bundle, made in the test without a download.

The model is a random two-layer Llama (hidden size 64, head dimension 32, tied embeddings) over a
byte-level BPE vocabulary that is trained here on a few sentences. The bundle holds two variants (4
bits with little noise, 1 bit with much), random linear decoders and random soft prompts. Its
figures mean nothing; its shapes and formats are real.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from del_core import accounting
from del_core.bundle import BaseModel, Guarantees, checksum_model, write_bundle
from del_core.mechanism import Mechanism
from tests.support.bundle import bundle_content, make_variant
from tests.support.tokenizer import byte_level_bpe

HIDDEN_SIZE = 64
VOCABULARY_SIZE = 320
DIM = 32
MAX_LEVEL = 127
CLIP = 1.0
SOFT_PROMPT_LENGTH = 32
CONTEXT_LENGTH = 512
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
VARIANTS = {"open": 4, "strict": 1}  # bits
MU = {"open": 20.0, "strict": 5.0}  # both below the default limit of a client
DELTA = 1e-6

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog and runs away from the old house by the river.",
    "A private prompt never leaves the device in the clear; only noisy counts of it are sent.",
    "Größe, naïveté, 日本語, emoji 🙂🙃 and other characters of more than one byte appear as well.",
    "She said that she had seen the sea, and that the sea had seen her: nobody believed the story.",
)


@dataclass(frozen=True)
class Tiny:
    """Where the tiny base model and its bundle lie, and the generator seed that made them."""

    model: Path
    bundle: Path
    seed: int


def make_tiny(directory: Path, seed: int = 20260) -> Tiny:
    """Write ``directory/model`` and ``directory/bundle``; the seed determines every number."""
    model = directory / "model"
    model.mkdir(parents=True)
    _write_tokenizer(model)
    _write_model(model, seed)
    bundle = directory / "bundle"
    _write_bundle(bundle, model, seed)
    return Tiny(model=model, bundle=bundle, seed=seed)


def make_other_bundle(tiny: Tiny, directory: Path, seed: int) -> Path:
    """Write another bundle for the same base model."""
    _write_bundle(directory, tiny.model, seed)
    return directory


def _write_tokenizer(model: Path) -> None:
    tokenizer = byte_level_bpe(_SENTENCES * 4, VOCABULARY_SIZE, (BOS, EOS))
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE
    tokenizer.save(str(model / "tokenizer.json"))


def _write_model(model: Path, seed: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        # Larger than usual, so that logits differ by far more than float32 rounds: greedy decoding
        # is well defined.
        initializer_range=0.3,
        torch_dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(model)


def _write_bundle(bundle: Path, model: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.integers(-MAX_LEVEL, MAX_LEVEL + 1, size=(VOCABULARY_SIZE, DIM))
    counts = generator.random(VOCABULARY_SIZE) + 0.1
    variants = []
    for name, bits in VARIANTS.items():
        mechanism = Mechanism.from_mu(MU[name], bits=bits, dim=DIM, max_level=MAX_LEVEL)
        guarantees = Guarantees(
            delta=DELTA, epsilon=accounting.epsilon(mechanism, DELTA), epsilon_vocabulary=None, mu=MU[name]
        )
        variants.append(
            make_variant(
                name,
                bits=bits,
                ratio_numerator=mechanism.ratio_numerator,
                guarantees=guarantees,
                weight=0.2 * generator.standard_normal((HIDDEN_SIZE, DIM)).astype(np.float32),
                bias=0.1 * generator.standard_normal(HIDDEN_SIZE).astype(np.float32),
                norm_limit=4.0,
                soft_prompt=0.3 * generator.standard_normal((SOFT_PROMPT_LENGTH, HIDDEN_SIZE)).astype(np.float32),
            )
        )
    content = bundle_content(
        table,
        variants,
        base_model=BaseModel("tiny-random-llama", checksum_model(model), HIDDEN_SIZE, VOCABULARY_SIZE),
        max_level=MAX_LEVEL,
        clip=CLIP,
        tokenizer_json=(model / "tokenizer.json").read_bytes(),
        log_prior=np.log(counts / counts.sum()),
        bos_token_id=BOS_ID,
    )
    write_bundle(bundle, **content)
