"""Fixtures: the shipped model, its tokenizer, and passages that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from del_core.demo import model_path
from del_core.lm.model import load_base_lm
from del_core.lm.text import TokenWindows, tokenize

PROMPT, CONTINUATION = 48, 16  # tokens of a passage
HELD_OUT = Path(__file__).parents[2] / "examples/demo_model/held_out.txt"


@pytest.fixture(scope="module")
def lm():
    """The shipped model."""
    return load_base_lm(model_path())


@pytest.fixture(scope="module")
def tokenizer(lm):
    """Its tokenizer."""
    return Tokenizer.from_str(lm.tokenizer_json.decode())


@pytest.fixture(scope="module")
def windows(tokenizer):
    """Forty passages that the model was not trained on."""
    text = HELD_OUT.read_text(encoding="utf-8")
    return TokenWindows(tokenize(tokenizer, [text]), PROMPT + CONTINUATION, 0).first(40)
