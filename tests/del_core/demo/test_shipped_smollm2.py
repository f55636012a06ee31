"""The packaged bundle of SmolLM2: its size, its guarantees, and the committed figures about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from del_core.accounting import epsilon
from del_core.bundle import for_chat, load_bundle
from del_core.demo import smollm2_bundle_path
from del_core.mechanism.base import MAX_EPSILON_PER_TOKEN

_ROOT = Path(__file__).resolve().parents[3]
_LEVELS = ("strict", "balanced", "open")
_PUBLISHED = tuple(f"published-{level}" for level in _LEVELS)
_FIGURES = json.loads((_ROOT / "benchmarks/results/training_smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(smollm2_bundle_path())


def test_it_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in smollm2_bundle_path().rglob("*") if path.is_file()) <= 16 * 10**6


def test_a_client_accepts_every_level(bundle):
    assert list(bundle.variants) == [*_LEVELS, *_PUBLISHED]
    for name, variant in bundle.variants.items():
        exact = epsilon(bundle.mechanism(name), variant.guarantees.delta)
        assert variant.guarantees.epsilon == pytest.approx(exact, rel=1e-9)
        assert exact <= MAX_EPSILON_PER_TOKEN
        assert variant.task == ("published" if name in _PUBLISHED else "general")
    for names in (_LEVELS, _PUBLISHED):
        found = [bundle.variants[level].guarantees.epsilon for level in names]
        assert found == sorted(found)
    assert [variant.name for variant in for_chat(bundle.variants.values())] == list(_LEVELS)


def test_the_levels_have_a_pure_epsilon_and_an_adapter(bundle):
    for name in _LEVELS:
        variant = bundle.variants[name]
        assert bundle.mechanism(name).kind == "categorical"
        assert variant.guarantees.delta == 0.0
        assert variant.guarantees.epsilon <= 8.0
        assert bundle.adapter(name) is not None


def test_the_committed_figures_are_of_this_bundle(bundle):
    assert _FIGURES["about"]["fingerprint"] == bundle.fingerprint
    assert "SmolLM2" in _FIGURES["about"]["model"]
    for name, audit in _FIGURES["audits"].items():
        assert audit == dict(bundle.variants[name].audit)


@pytest.mark.parametrize("level", _LEVELS)
def test_the_readme_quotes_the_manifest(bundle, level):
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith(f"| {level} |"))
    variant = bundle.variants[level]
    *_, attacked, cost = (cell.strip() for cell in row.strip("|").split("|"))
    assert attacked == f"{100 * variant.audit['strongest_attack']['success']:.1f} %"
    assert cost == f"{variant.guarantees.epsilon:.1f}"


def test_the_template_ends_a_turn_with_one_token(bundle):
    tokenizer = Tokenizer.from_file(str(bundle.client.tokenizer_path))
    assert len(tokenizer.encode("<|im_end|>", add_special_tokens=False).ids) == 1
