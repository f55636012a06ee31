"""The packaged demo keeps its documented figures on held-out text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from del_core.accounting import epsilon
from del_core.audit.attacks.base import AttackSurface, recovery, reproducible_bytes
from del_core.bundle import load_bundle
from del_core.demo import bundle_path, model_path
from del_core.lm.model import load_base_lm
from del_core.lm.perplexity import continuation_nll
from del_core.vocabulary_accounting import vocabulary_epsilon

_ROOT = Path(__file__).resolve().parents[3]
_VARIANTS = ("strict", "balanced", "open")
_PROMPT, _CONTINUATION, _WINDOWS = 96, 32, 48


@pytest.fixture(scope="module")
def bundle():
    """The shipped bundle."""
    return load_bundle(bundle_path())


@pytest.fixture(scope="module")
def lm():
    """The shipped model."""
    return load_base_lm(model_path())


@pytest.fixture(scope="module")
def held_out(bundle):
    """Token ids of the test part of the demo's text."""
    tokenizer = Tokenizer.from_file(str(bundle.client.tokenizer_path))
    text = (_ROOT / "examples/demo_model/held_out.txt").read_text(encoding="utf-8")
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids)


def test_it_is_small_enough_to_ship():
    files = [path for place in (model_path(), bundle_path()) for path in place.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24 * 10**6


@pytest.mark.parametrize("name", _VARIANTS)
def test_attacks_recover_what_the_manifest_says(bundle, lm, held_out, name):
    audit, mechanism = bundle.variants[name].audit, bundle.mechanism(name)
    tensors = bundle.decoder(name)
    tokens = held_out[::4]
    surface = AttackSurface(
        table=np.asarray(bundle.client.table),
        weight=tensors["weight"],
        bias=tensors["bias"],
        embeddings=lm.embeddings.numpy(),
        log_prior=bundle.log_prior,
    )
    measured = recovery(mechanism, surface, tokens, seed=1)
    for attack in ("nearest", "map"):
        stated = audit[attack]["success"]
        # z = 6 over both samples: alpha below 1e-6.
        tolerance = 6 * (stated * (1 - stated) * (1 / len(tokens) + 1 / audit[attack]["tokens"])) ** 0.5
        assert abs(measured[attack].success - stated) < tolerance


@pytest.mark.parametrize("name", _VARIANTS)
def test_the_soft_prompt_lowers_held_out_perplexity(bundle, lm, held_out, name):
    length = _PROMPT + _CONTINUATION
    starts = np.linspace(0, len(held_out) - length, _WINDOWS).astype(int)
    windows = torch.from_numpy(np.stack([held_out[start : start + length] for start in starts]))
    mechanism, decoder = bundle.mechanism(name), bundle.build_decoder(name)
    levels = np.asarray(bundle.client.table)[windows[:, :_PROMPT].reshape(-1).numpy()]
    decoded = decoder.decode(mechanism.sample(levels, reproducible_bytes(2)))
    prompt = torch.from_numpy(decoded).view(_WINDOWS, _PROMPT, -1)
    with torch.no_grad():
        without = continuation_nll(lm.model, prompt, windows[:, _PROMPT:])
        soft_prompt = torch.from_numpy(np.ascontiguousarray(bundle.soft_prompt(name)))
        with_soft_prompt = continuation_nll(lm.model, prompt, windows[:, _PROMPT:], soft_prompt)
    assert float((without - with_soft_prompt).mean()) > 0


def test_stated_epsilons_are_exact(bundle):
    for name in _VARIANTS:
        guarantees = bundle.variants[name].guarantees
        assert guarantees.epsilon == pytest.approx(epsilon(bundle.mechanism(name), guarantees.delta), rel=1e-9)


@pytest.mark.parametrize("name", _VARIANTS)
def test_the_audit_that_ships_holds_together(bundle, name):
    found = json.loads((_ROOT / "docs/results/audit-demo/audit.json").read_text(encoding="utf-8"))
    variant, shipped = found["variants"][name], bundle.variants[name]
    assert found["bundle"]["updated_fingerprint"] == bundle.fingerprint
    assert variant["epsilon_vocabulary"] == shipped.guarantees.epsilon_vocabulary < shipped.guarantees.epsilon
    for attack, rate in variant["attacks"].items():
        assert {key: rate[key] for key in ("success", "low", "high", "tokens")} == shipped.audit[attack]
        assert 0 <= rate["low"] <= rate["success"] <= rate["high"] <= 1
        assert -1 <= rate["cosine"] <= 1
    # All saw the same counts: MAP is optimal for one position, and context does no harm, up to
    # chance.
    assert variant["attacks"]["map"]["high"] >= variant["attacks"]["nearest"]["low"]
    assert variant["attacks"]["sequence"]["high"] >= variant["attacks"]["map"]["low"]
    assert variant["context_adds"]["high"] >= 0
    assert variant["attacks"]["map"]["low"] <= variant["ceiling"] <= 1
    # The exact figure of the table, computed anew.
    tight = vocabulary_epsilon(bundle.mechanism(name), np.asarray(bundle.client.table), variant["delta"])
    assert tight.epsilon == pytest.approx(variant["epsilon_vocabulary"], rel=1e-5)
    assert tight.epsilon_lower < tight.cube_epsilon


# What attacks outside the audit have recovered from the same counts of the same prompts: a beam 32
# wide with a tuned weight, and a bidirectional model with such a beam.
_KNOWN = {"strict": 0.079, "balanced": 0.176, "open": 0.511}


@pytest.mark.parametrize("name", _VARIANTS)
def test_the_audit_that_ships_does_not_understate(bundle, name):
    """The strongest attack finds what is known to be found, within its interval."""
    stated = bundle.variants[name].audit["strongest_attack"]
    assert stated["high"] >= _KNOWN[name]
    assert stated["tokens"] == 6144
    found = json.loads((_ROOT / "docs/results/audit-demo/audit.json").read_text(encoding="utf-8"))
    attack = found["variants"][name]["attacks"][stated["attack"]]
    assert {key: attack[key] for key in ("success", "low", "high")} == {
        key: stated[key] for key in ("success", "low", "high")
    }
