"""The worked numbers of docs/guides/plans.md are those of bundle, plans and arithmetic."""

from __future__ import annotations

import math
import re
import tomllib

import pytest
from tokenizers import Tokenizer

from client_lib import policy
from del_core.bundle import load_client
from del_core.demo import smollm2_bundle_path
from examples.mobile_backend.settings import read_plans
from tests.support.guide import ROOT

PAGE = (ROOT / "docs/guides/plans.md").read_text("utf-8")
PLANS = ROOT / "examples/mobile_backend/plans-codes.toml"
BUNDLE = smollm2_bundle_path()


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_products_of_the_table() -> None:
    rows = re.findall(r"^\| [a-z ,]+ \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 3
    for messages, size, tokens, epsilon in (map(number, row) for row in rows):
        assert messages * size == tokens
        assert 8 * tokens == epsilon
    plans = read_plans(PLANS)
    assert [plan.tokens for plan in plans.values()] == [number(row[2]) for row in rows[1:]]


def test_what_the_page_says_of_the_variant() -> None:
    mechanism = load_client(BUNDLE / "client").mechanism("open")
    for plan in read_plans(PLANS).values():
        assert plan.variant == "open"
        assert policy.known_epsilon(mechanism, 1e-300, 1) == pytest.approx(8.0, abs=1e-5)
        assert policy.known_epsilon(mechanism, 1e-300, 1) <= plan.max_epsilon_per_token
    (numerator,) = mechanism.noise_numerators
    text = " ".join(PAGE.split())
    assert f"With probability {1 - numerator / 2**32:.2f} it is the" in text
    assert f"is {math.exp(8):,.0f}" in text
    assert f"up to {100 * math.exp(8) / (1 + math.exp(8)):.2f} % sure" in text
    vocabulary = load_client(BUNDLE / "client").manifest.base_model.vocabulary_size
    assert 190 <= vocabulary / 256 <= 210  # about two hundred tokens a code


def test_the_tokens_of_the_messages() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLE / "client" / "tokenizer.json"))
    text, tokens = re.findall(r'"(I have a job interview[^"]+)" has (\d+)', PAGE)[0]
    assert len(tokenizer.encode(text).ids) == int(tokens)


def test_the_plans_differ_only_where_the_page_says() -> None:
    plain = tomllib.loads((PLANS.with_name("plans.toml")).read_text("utf-8"))
    codes = tomllib.loads(PLANS.read_text("utf-8"))
    assert plain.keys() == codes.keys()
    for name, plan in plain.items():
        assert {field for field in plan if plan[field] != codes[name][field]} == {"variant", "max_epsilon_per_token"}
