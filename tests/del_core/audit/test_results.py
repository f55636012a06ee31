"""Results and their JSON: the committed report is read, written and rendered the same."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from del_core.audit import records
from del_core.audit.attacks import ATTACKS, Attack, register
from del_core.audit.intervals import Rate
from del_core.audit.report.page import render_page, verdict
from del_core.audit.report.write import read_report
from del_core.audit.results import AuditResult, PerToken, VariantAudit

_ROOT = Path(__file__).resolve().parents[3]
_REPORT = _ROOT / "docs/results/audit-demo"


@pytest.fixture(scope="module")
def audit() -> AuditResult:
    return read_report(_REPORT)


def test_the_committed_json_is_reproduced_byte_for_byte(audit: AuditResult) -> None:
    text = json.dumps(audit.to_json(), indent=2, allow_nan=False) + "\n"
    assert text == (_REPORT / "audit.json").read_text(encoding="utf-8")


def test_the_committed_page_is_rendered_from_its_json(audit: AuditResult) -> None:
    """If this fails: ``python -m del_core.audit.report docs/results/audit-demo``."""
    assert render_page(audit) == (_REPORT / "index.html").read_text(encoding="utf-8")


def test_a_variant_is_read_back_with_every_token(audit: AuditResult) -> None:
    variant = next(iter(audit.variants.values()))
    each = PerToken(ids=(3, 5), each={"worst": (1.5, 2.0)}, each_rival={"worst": (5, 3)})
    tokens = replace(variant.proven.token_epsilons, per_token=each)
    whole = replace(variant, proven=replace(variant.proven, token_epsilons=tokens))
    assert records.from_json(VariantAudit, json.loads(json.dumps(records.to_json(whole)))) == whole
    assert records.from_json(VariantAudit, records.to_json(whole.without_tokens())) == variant


@pytest.mark.parametrize(("hits", "tokens"), [(0, 1), (1, 3), (4096, 6144), (12_345, 99_999), (100_000, 100_000)])
def test_a_rate_is_read_back_exactly(hits: int, tokens: int) -> None:
    rate = Rate(hits, tokens)
    assert Rate.from_json(rate.to_json()) == rate


def _without(path: str):
    def change(value):
        *parents, last = path.split(".")
        for key in parents:
            value = value[key]
        del value[last]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(format_version=1), "format_version must be 2, got 1"),
        (lambda value: value.update(date=7), "date must be a string, got int"),
        (lambda value: value.update(seconds=True), "seconds must be a number, got bool"),
        (lambda value: value.update(variants=[]), "variants must be an object, got list"),
        (_without("bundle.fingerprint"), "bundle.fingerprint must be present"),
        (_without("variants.open.leakage_bits"), "variants.open.leakage_bits must be present"),
        (_without("variants.open.attacks.map.tokens"), "variants.open.attacks.map must be an object with success"),
        (
            lambda value: value["variants"]["open"].update(leakage_interval=[1.0]),
            "variants.open.leakage_interval must be an array of 2 elements, got 1",
        ),
    ],
)
def test_another_form_is_refused_by_name(audit: AuditResult, change, message: str) -> None:
    value = copy.deepcopy(audit.to_json())
    change(value)
    with pytest.raises(ValueError, match=re.escape(message)):
        AuditResult.from_json(value)


def test_an_attack_that_is_not_installed_is_still_shown(audit: AuditResult) -> None:
    variants = {
        name: replace(variant, attacks={**variant.attacks, "<other>": variant.attacks["map"]})
        for name, variant in audit.variants.items()
    }
    page = render_page(replace(audit, variants=variants))
    assert "<other>" not in page
    assert "&lt;other&gt;" in page


def test_the_word_of_a_variant_follows_from_the_strongest_attack(audit: AuditResult) -> None:
    variant = audit.variants["open"]
    for hits, word in ((0.05, "strong"), (0.12, "good"), (0.4, "weak"), (0.6, "none")):
        attack = replace(variant.attacks["map"], rate=Rate(round(hits * 6144), 6144))
        found, text = verdict(replace(variant, attacks={"map": attack}))
        assert found == word
        assert f"{100 * attack.rate.success:.1f} %" in text


def test_the_documentation_lists_every_attack() -> None:
    page = (_ROOT / "docs/privacy/audit.md").read_text(encoding="utf-8")
    for name, attack in ATTACKS.items():
        assert f"| `{name}` | {attack.explanation} |" in page


@pytest.mark.parametrize("name", ["map", "leakage_bits"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    class Other(Attack):
        label = explanation = needs = "other"

        def run(self, target):
            raise NotImplementedError

    Other.name = name
    with pytest.raises(ValueError, match="attack must have a name that"):
        register(Other())
    assert tuple(ATTACKS) == ("nearest", "map", "sequence", "inverter")
