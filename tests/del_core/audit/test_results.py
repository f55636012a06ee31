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
from del_core.audit.quality import TextQuality, read_quality, stated_quality, stated_warnings
from del_core.audit.report.page import render_page, verdict
from del_core.audit.report.write import read_report
from del_core.audit.results import AuditResult, PerToken, VariantAudit

_ROOT = Path(__file__).resolve().parents[3]
_REPORT = _ROOT / "docs/results/audit-demo"
_REPORTS = (_REPORT, _ROOT / "docs/results/audit-smollm2")


@pytest.fixture(scope="module")
def audit() -> AuditResult:
    return read_report(_REPORT)


@pytest.mark.parametrize("report", _REPORTS, ids=lambda path: path.name)
def test_a_committed_report_is_reproduced_byte_for_byte(report: Path) -> None:
    """If this fails: ``python -m del_core.audit.report docs/results/audit-demo``, or the other."""
    audit = read_report(report)
    text = json.dumps(audit.to_json(), indent=2, allow_nan=False) + "\n"
    assert text == (report / "audit.json").read_text(encoding="utf-8")
    assert render_page(audit) == (report / "index.html").read_text(encoding="utf-8")


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


def _judged(audit: AuditResult, success: float, best: float) -> tuple[str, str]:
    """Return the verdict on a variant with this success, and this share of the best prompt."""
    variant = audit.variants["open"]
    attack = replace(variant.attacks["map"], rate=Rate(round(success * 6144), 6144), blind=None)
    examples = tuple(replace(example, recovered=best) for example in variant.examples)
    return verdict(replace(variant, attacks={"map": attack}, examples=examples))


@pytest.mark.parametrize(("success", "word"), [(0.05, "strong"), (0.12, "good"), (0.4, "weak"), (0.6, "none")])
def test_the_word_of_a_variant_follows_from_the_strongest_attack(audit: AuditResult, success: float, word: str) -> None:
    found, text = _judged(audit, success, 0.1)
    assert found == word
    assert f"is map: it recovered {100 * round(success * 6144) / 6144:.1f} %" in text


@pytest.mark.parametrize(("best", "word"), [(0.39, "good"), (0.53, "weak"), (0.79, "weak"), (0.8, "none")])
def test_one_prompt_that_can_be_read_is_evidence_too(audit: AuditResult, best: float, word: str) -> None:
    found, text = _judged(audit, 0.12, best)
    assert found == word
    assert f"The prompt that was read best lost {100 * best:.1f} % of its tokens" in text
    assert ("no prompt that was measured could be read" in text) == (word == "good")


def test_the_page_shows_what_text_a_level_buys_and_warns(audit: AuditResult) -> None:
    quality = {"open": TextQuality(60.0, 50.0, 72.0), "strict": TextQuality(75.5, 50.0, 71.6)}
    page = render_page(replace(audit, quality=quality))
    assert "text: 50 % of what the clear prompt gains; perplexity 60.0 (clear prompt 50.0, no prompt 72.0)" in page
    assert "text: no better than without a prompt; perplexity 75.5" in page
    assert page.count("strict: perplexity 75.5 is no better than without any prompt (71.6)") == 1
    assert "no better than" not in render_page(audit)
    summary = replace(audit, quality=quality).manifest_summary("strict", {})
    assert stated_quality(summary) == quality["strict"]
    assert len(stated_warnings({"strict": summary, "other": {}})) == 1


def test_a_summary_names_the_strongest_attack(audit: AuditResult) -> None:
    for name, variant in audit.variants.items():
        attack, found = variant.strongest()
        stated = audit.manifest_summary(name, {})["strongest_attack"]
        assert (stated["attack"], stated["success"]) == (attack, round(found.rate.success, 5))
        assert stated["blind"] <= stated["success"]


def test_an_evaluation_is_read_by_its_rows() -> None:
    rows = [
        {"method": "clear prompt", "ppl": [50.0, 48.0, 52.0]},
        {"method": "no prompt", "ppl": [72.0, 70.0, 74.0]},
        {"method": "open", "ppl": [60.0, 59.0, 61.0]},
        {"method": "open, soft prompt left out", "ppl": [61.0, 60.0, 62.0], "without_soft_prompt": True},
    ]
    assert read_quality(rows) == {"open": TextQuality(60.0, 50.0, 72.0)}
    assert read_quality([rows[0], rows[2]]) == {"open": TextQuality(60.0, 50.0)}
    for wrong, message in (
        ({}, "evaluation must be the array"),
        (rows[1:], "must have a row of the clear prompt"),
        ([{"method": "clear prompt", "ppl": [-1.0]}], r"evaluation\[0\].ppl must be a number above 0"),
        ([{"method": "clear prompt"}], r"evaluation\[0\] must have a method and a perplexity"),
    ):
        with pytest.raises(ValueError, match=message):
            read_quality(wrong)


def test_the_documentation_lists_every_attack() -> None:
    page = (_ROOT / "docs/privacy/audit.md").read_text(encoding="utf-8")
    for name, attack in ATTACKS.items():
        assert f"| `{name}` | {attack.explanation} |" in page


@pytest.mark.parametrize("name", ["map", "leakage_bits", "strongest_attack"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    class Other(Attack):
        label = explanation = needs = "other"

        def run(self, target):
            raise NotImplementedError

    Other.name = name
    with pytest.raises(ValueError, match="attack must have a name that"):
        register(Other())
    assert tuple(ATTACKS) == ("nearest", "map", "sequence", "inverter", "bidirectional", "combined")
