"""Attackers with a model and text: what no noise gives away, what pure noise does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from del_core.audit.attacks import ATTACKS, AttackSurface, Target
from del_core.audit.attacks.bidirectional import BidirectionalLM, train_reader
from del_core.audit.corpus import PASSAGE, shared_passages
from del_core.audit.intervals import Rate
from del_core.audit.settings import (
    BUDGETS,
    FULL,
    LEAST_PROMPTS,
    AttackerBudget,
    AuditConfig,
    InverterConfig,
    ProvenConfig,
    affordable_prompts,
    affordable_proofs,
    parse_budget,
)
from del_core.audit.strongest import CalibrationText, StrongestSearch
from del_core.lm.model import BaseLM
from del_core.lm.text import TextError
from del_core.mechanism import Mechanism, TokenMechanism
from del_core.mechanism.categorical import CategoricalMechanism
from tests.support.language import LENGTH, LOG_PRIOR, VOCABULARY, language, prompts, speaker

DIM, MAX_LEVEL = 6, 127
BUDGET = AttackerBudget("test", training=0.003, search=0.003, beams=8, candidates=VOCABULARY)
CONFIG = AuditConfig(
    prompts=64,
    length=LENGTH,
    tuning=16,
    inverters=(InverterConfig(width=32, layers=1, steps=40, learning_rate=3e-3, evaluate_every=20),),
    leakage_samples=100,
    attacker=BUDGET,
)
_Z = 4.891638  # two-sided alpha = 1e-6
TRAINED = ("sequence", "inverter", "bidirectional", "combined")


@pytest.fixture(scope="module")
def lm() -> BaseLM:
    return BaseLM(speaker(), b"", "", None)


def _binomial(ratio: float, bits: int = 8) -> TokenMechanism:
    return Mechanism(bits, DIM, Mechanism.nearest_ratio(ratio), max_level=MAX_LEVEL)


def _codes(epsilon: float) -> TokenMechanism:
    return CategoricalMechanism.from_epsilon(epsilon, bits=5)


def _target(lm: BaseLM, mechanism: TokenMechanism) -> Target:
    if isinstance(mechanism, CategoricalMechanism):
        table = np.arange(VOCABULARY, dtype=np.int16)[:, None]
    else:
        table = np.random.default_rng(2).integers(-MAX_LEVEL, MAX_LEVEL + 1, (VOCABULARY, DIM), dtype=np.int16)
    rows = lm.embeddings.detach().numpy()
    width = rows.shape[1]
    surface = AttackSurface(table, np.eye(width, DIM, dtype=np.float32), np.zeros(width, np.float32), rows, LOG_PRIOR)
    ids = prompts(64, 4)
    return Target(
        mechanism=mechanism,
        surface=surface,
        counts=surface.release(mechanism, ids, 0),
        lm=lm,
        bos_token_id=None,
        train=language(20_000, 12),
        validation=prompts(64, 5),
        config=CONFIG,
        progress=lambda share: None,
    )


def _success(name: str, target: Target) -> Rate:
    return Rate.from_hits(ATTACKS[name].run(target).token_ids == prompts(64, 4))


@pytest.mark.parametrize("make", [lambda: _binomial(0.999), lambda: _codes(25.0)], ids=["binomial", "categorical"])
@pytest.mark.parametrize("name", TRAINED)
def test_without_noise_every_token_is_recovered(lm: BaseLM, name: str, make: Callable[[], TokenMechanism]) -> None:
    assert _success(name, _target(lm, make())).success > 0.99


@pytest.mark.parametrize("make", [lambda: _binomial(1e-4, 1), lambda: _codes(1e-4)], ids=["binomial", "categorical"])
@pytest.mark.parametrize("name", TRAINED)
def test_under_pure_noise_an_attack_is_blind_guessing(
    lm: BaseLM, name: str, make: Callable[[], TokenMechanism]
) -> None:
    target = _target(lm, make())
    noisy, blind = _success(name, target), _success(name, target.silent(prompts(64, 4)))
    # No token of this language is more frequent: a guess is right with probability 1 / V. Prompts
    # are runs, where a guess that is right once is right for long, so 64 prompts count as trials.
    margin = _Z * (1 / VOCABULARY * (1 - 1 / VOCABULARY) / 64) ** 0.5
    for rate in (noisy, blind):
        assert abs(rate.success - 1 / VOCABULARY) < margin


@pytest.mark.parametrize("make", [lambda: _binomial(0.45, 2), lambda: _codes(2.5)], ids=["binomial", "categorical"])
def test_reading_both_sides_recovers_more_than_one_position_alone(
    lm: BaseLM, make: Callable[[], TokenMechanism]
) -> None:
    target = _target(lm, make())
    alone, sequence = _success("map", target), _success("sequence", target)
    both, combined = ATTACKS["bidirectional"].run(target), _success("combined", target)
    # 1,024 tokens: the standard error of a difference is below 0.022; 0.11 is five of them.
    assert sequence.success > alone.success + 0.11
    assert combined.success > alone.success + 0.11
    # One layer of 32 units learns little in 170 steps, but all attacks saw the same counts.
    assert np.mean(both.token_ids == prompts(64, 4)) > alone.success
    assert float(both.settings["loss"]) < float(both.settings["untrained_loss"]) - 0.03


def test_training_lowers_the_loss_and_starts_from_earlier_variants(lm: BaseLM) -> None:
    target = _target(lm, _binomial(0.45, 2))
    first = train_reader(target)
    assert first.loss < first.untrained_loss
    assert (first.steps, first.tokens) == (first.steps, first.steps * 256)
    again = train_reader(target)
    assert again.untrained_loss == pytest.approx(first.loss, abs=1e-5)
    alike = train_reader(_target(lm, _binomial(0.45, 2)))
    assert alike.loss == pytest.approx(first.loss, abs=1e-4), "the same seed, the same result"


def test_the_measured_prompts_change_no_setting(lm: BaseLM) -> None:
    """What an attack learns and chooses depends on train and validation alone."""
    target = _target(lm, _binomial(0.45, 2))
    other = Target(**{**vars(target), "counts": target.surface.release(target.mechanism, prompts(64, 40), 7)})
    for name in TRAINED:
        one, two = (
            ATTACKS[name].run(Target(**{**_fields(each), "shared": {}, "carried": {}})) for each in (target, other)
        )
        assert one.settings == two.settings
        assert one.steps == two.steps
        assert [(size.width, size.validation_loss) for size in one.sizes] == [
            (size.width, size.validation_loss) for size in two.sizes
        ]


def _fields(target: Target) -> dict:
    return {name: value for name, value in vars(target).items() if name in Target.__dataclass_fields__}


def test_the_noise_is_found_at_which_the_strongest_attack_recovers_a_share(lm: BaseLM) -> None:
    surface = _target(lm, _binomial(0.45, 4)).surface
    text = CalibrationText.divide(language(8_000, 20), language(300 * LENGTH, 21), CONFIG)
    assert (len(text.validation), len(text.prompts)) == (120, 64)
    search = StrongestSearch(surface, lm, text, CONFIG, bits=4, max_level=MAX_LEVEL, tokens=language(2_000, 22))
    found = search.run(0.5, points=5)
    assert 1 <= len(found.points) <= 5
    assert found.points[-1].ratio == found.mechanism.ratio
    assert found.attack in ATTACKS
    assert all(point.rate.success >= point.map.success for point in found.points)
    # Where MAP recovers half, attacks that know the language recover more: MAP must be below.
    assert found.points[-1].map.success < 0.45
    # Chance on 1,024 tokens of runs, and the interpolation of the last step.
    assert abs(found.rate.success - 0.5) < 0.12
    with pytest.raises(ValueError, match="points must be at least 2"):
        search.run(0.5, points=1)
    with pytest.raises(ValueError, match="target must be from"):
        search.run(0.001)
    with pytest.raises(TextError, match="its validation part has 100 tokens; 512 are needed"):
        CalibrationText.divide(language(100, 0), language(100, 0), CONFIG)


def test_stopping_and_tuning_are_disjoint(lm: BaseLM) -> None:
    target = _target(lm, _binomial(0.45, 2))
    numbered = Target(**{**_fields(target), "validation": np.arange(64)[:, None].repeat(LENGTH, 1)})
    stopping, tuning = set(numbered.stopping[:, 0]), set(numbered.tuning[:, 0])
    assert stopping
    assert tuning
    assert not stopping & tuning


def test_passages_that_two_texts_share_are_found() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(0, 5000, 300), random.integers(0, 5000, 300)
    other[100:120] = one[200:220]
    marked = shared_passages(other, one)
    assert set(np.flatnonzero(marked)) == set(range(100, 120))
    other[100 : 100 + PASSAGE - 1] = -1
    assert not shared_passages(np.concatenate([one[: PASSAGE - 1], [-1], one[-PASSAGE + 1 :]]), one).any()


def test_a_budget_is_a_preset_with_changes() -> None:
    assert parse_budget("quick") == BUDGETS["quick"]
    changed = parse_budget("standard,training=20,beams=64")
    assert (changed.training, changed.beams, changed.search) == (20.0, 64, BUDGETS["standard"].search)
    assert changed.name == "standard,training=20,beams=64"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("huge", "must begin with one of quick, standard, thorough, got 'huge'"),
        ("quick,speed=2", "must change one of training, search, beams, candidates, got 'speed=2'"),
        ("quick,beams=wide", "beams must be a number, got 'wide'"),
        ("quick,training=-1", "training must be"),
        ("quick,beams=1000", "candidates must be"),
    ],
)
def test_another_budget_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_budget(text)


def test_large_models_are_measured_on_fewer_prompts_and_large_vocabularies_on_some_tokens() -> None:
    assert affordable_prompts(FULL, 7_500_000) == FULL.prompts
    assert affordable_prompts(FULL, 10**12) == LEAST_PROMPTS
    assert affordable_prompts(CONFIG, 10**15) == CONFIG.prompts
    assert affordable_proofs(FULL, 4096) is FULL
    assert affordable_proofs(FULL, 49_152).proven == ProvenConfig(compose_vocabulary=False, tokens=1024)


def test_a_budget_limits_steps_and_width() -> None:
    budget = AttackerBudget("", training=1.0, search=1.0, beams=32)
    assert budget.steps(1e10, 4000) == 100
    assert budget.steps(1e10, 7) == 7
    assert [budget.width(lambda beams, share=share: 1e12 * beams / share) for share in (1, 2, 9, 31, 1000)] == [
        2,
        2,
        8,
        16,
        32,
    ]
    assert budget.width(lambda beams: 0.9e12 + 1e11 * beams) == 2
    assert replace(budget, beams=1).width(lambda beams: 0.0) == 1


SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": SIZES,
    "mistral": {**SIZES, "num_key_value_heads": 1, "sliding_window": 4},
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "gemma2": {**SIZES, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": SIZES,
}
LEFT_ONLY = {"bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_causal_mask_is_gone_in_other_families(family: str, lm: BaseLM) -> None:
    """A change of the last token's counts changes the scores of the first position."""
    change = _change_of_the_first_scores(family, FAMILIES[family], lm)
    assert change > 1e-6


@pytest.mark.parametrize("family", LEFT_ONLY)
def test_a_family_that_keeps_its_mask_is_read_from_the_left(family: str, lm: BaseLM) -> None:
    assert _change_of_the_first_scores(family, LEFT_ONLY[family], lm) == 0.0


def _change_of_the_first_scores(family: str, sizes: dict[str, int], lm: BaseLM) -> float:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    target = _target(lm, _binomial(0.9, 4))
    table = np.random.default_rng(2).integers(-MAX_LEVEL, MAX_LEVEL + 1, (64, DIM), dtype=np.int16)
    prior = np.full(64, -np.log(64), np.float32)
    rows = model.get_input_embeddings().weight.detach().numpy()
    surface = AttackSurface(table, np.eye(32, DIM, dtype=np.float32), np.zeros(32, np.float32), rows, prior)
    reader = BidirectionalLM(
        Target(**{**_fields(target), "lm": BaseLM(model, b"", "", None), "surface": surface})
    ).eval()
    counts = surface.release(target.mechanism, prompts(1, 0), 0)
    changed = counts.copy()
    changed[0, -1] = target.mechanism.largest_count - changed[0, -1]
    with torch.no_grad():
        one, two = reader(counts)[0, 0], reader(changed)[0, 0]
    return float((one - two).abs().max())
