"""A language model of a minute's training, and encoders for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from del_core.lm.model import FrozenLM, load_frozen_lm
from del_core.lm.text import read_texts
from del_core.training.base import BaseConfig, train_base
from del_core.training.config import EncoderConfig
from del_core.training.encoder import train_encoder
from del_core.training.projection import Projection
from del_core.training.results import EncoderResult
from del_core.training.start import Stage1
from tests.support.texts import ALICE

TARGET = 0.3
CONFIG = EncoderConfig(
    TARGET, width=32, prompt_tokens=24, continuation_tokens=8, min_prompt_tokens=8, batch=8, steps=300,
    evaluation_windows=128,
)  # fmt: skip


def make_lm(directory: Path) -> FrozenLM:
    """Train a model into an empty directory and load it."""
    texts = read_texts([ALICE])
    sizes = BaseConfig(
        vocabulary=400, hidden=64, layers=2, heads=2, feed_forward=128, context=64, batch=8, steps=300,
        learning_rate=4e-3,
    )  # fmt: skip
    train_base(texts, directory, sizes, progress=False)
    return load_frozen_lm(directory, texts, held_out=0.4)  # rates and perplexities of few tokens say little


def untrained(lm: FrozenLM) -> Stage1:
    """Return a projection of principal components."""
    return Stage1(Projection.from_pca(lm.embeddings, lm.unigram(), 16))


def make_encoder(lm: FrozenLM, directory: Path, decoder: str, steps: int = CONFIG.steps) -> EncoderResult:
    """Train an encoder with a decoder of a kind into a directory."""
    config = replace(CONFIG, decoder=decoder, steps=steps)
    return train_encoder(lm, untrained(lm), directory, config, progress=False)
