"""The paper's tables on a pretrained model: pieces, resuming, tables; on a tiny one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.privacy_utility.pretrained.paper import PaperBench, PaperPlan
from benchmarks.privacy_utility.pretrained.paper_report import paper_results
from benchmarks.privacy_utility.pretrained.plan import COUNTS, AttackBudget
from del_core.lm.text import tokenize
from del_core.training.config import VariantConfig
from tests.support.texts import ALICE

_PLAN = PaperPlan(
    levels=(0.2, 0.4),
    dims=(8,),
    projection_steps=2,
    passages=4,
    training=VariantConfig(
        prompt_tokens=16, continuation_tokens=4, batch=2, steps=2, learning_rate=1e-2, evaluation_windows=4,
        test_windows=1,
    ),
)  # fmt: skip
_TEXTS = ("alice", "other")


@pytest.fixture(scope="module")
def bench(tiny_pretrained, tmp_path_factory):
    """A bench with two texts, whose pieces are all computed."""
    work = tmp_path_factory.mktemp("paper")
    budget = AttackBudget(prompts=16, tokens=8, tuning=4, beams=2, candidates=8, points=2)
    plan = replace(_PLAN.comparison(_TEXTS), attack=budget)
    comparison = tiny_pretrained.bench(plan, work / "work", work / "paper")
    text = ALICE.read_text(encoding="utf-8")
    parts = {name: tokenize(comparison.tokenizer, [part]) for name, part in zip(_TEXTS, (text[60_000:90_000],
             text[90_000:120_000]), strict=True)}  # fmt: skip
    made = PaperBench(comparison, parts, _PLAN)
    for piece in made.pieces:
        made.run(piece)
    return made


@pytest.fixture(scope="module")
def found(bench):
    """The results of all pieces."""
    return paper_results(bench.bench.out, bench.pieces, _PLAN)


def test_every_table_is_full(found):
    assert found["about"]["pieces_missing"] == []
    assert [(row["text"], row["level"]) for row in found["levels"]] == [
        (text, level) for text in _TEXTS for level in (0.2, 0.4)
    ]
    assert [(row["text"], row["read"]) for row in found["controls"]] == [
        (text, read) for text in _TEXTS for read in ("nothing", "clear")
    ]
    assert {(row["trained on"], row["measured on"]) for row in found["transfer"]} == {
        ("alice", "other"), ("other", "alice")
    }  # fmt: skip
    assert len(found["other_levels"]) == 2 * 2 * 2
    assert [row["dim"] for row in found["dims"]] == [8]
    assert found["dims"][0]["bits"] == 8 * 4


def test_ratios_are_those_of_the_perplexities(found):
    for row in found["levels"]:
        assert row["ratio"][0] == pytest.approx(row["ppl with"][0] / row["ppl without"][0], rel=1e-3)
        assert row["nearest"][0] <= row["strongest"][0] + 0.2
    own = {(row["text"], row["level"]): row["ppl with"][0] for row in found["levels"]}
    for row in found["transfer"]:
        expected = row["ppl with"][0] / own[row["measured on"], row["level"]]
        assert row["ratio to own"][0] == pytest.approx(expected, rel=1e-3)
    for row in found["other_levels"]:
        if row["trained at"] == row["measured at"]:
            assert row["ppl"][0] == own[row["text"], row["measured at"]]
            assert "ratio to own" not in row
        else:
            expected = row["ppl"][0] / own[row["text"], row["measured at"]]
            assert row["ratio to own"][0] == pytest.approx(expected, rel=1e-3)


def test_noise_is_that_of_the_attacked_points(bench):
    piece = json.loads((bench.bench.out / "alice-20.json").read_text("utf-8"))
    points = json.loads((bench.bench.out / f"attack-{COUNTS}.json").read_text("utf-8"))["points"]
    assert {name: value for name, value in piece["noise"].items() if name != "nearest"} in points


def test_soft_prompts_of_two_texts_differ(bench):
    first, second = (
        json.loads((bench.bench.out / f"{text}-20.json").read_text("utf-8"))["nll"]["alice"] for text in _TEXTS
    )
    assert not np.allclose(first, second)


def test_what_is_done_stays_and_what_is_missing_is_named(bench, tmp_path):
    out = bench.bench.out
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    losses = json.loads((out / "other-40.json").read_text("utf-8"))["nll"]
    (out / "other-40.json").unlink()
    partial = paper_results(out, bench.pieces, _PLAN)
    assert partial["about"]["pieces_missing"] == ["other-40"]
    assert "ppl with" not in next(r for r in partial["levels"] if (r["text"], r["level"]) == ("other", 0.4))
    for piece in bench.pieces:
        bench.run(piece)
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"other-40.json"}
    assert json.loads((out / "other-40.json").read_text("utf-8"))["nll"] == losses
    assert paper_results(tmp_path, bench.pieces, _PLAN)["levels"] == []
