"""The comparison of encoders by constraint: rows, levels and ratios; on a tiny model."""

from __future__ import annotations

import pytest

from benchmarks.encoder_constraint import Plan, compare
from benchmarks.privacy_utility.pretrained.plan import AttackBudget
from del_core.training.config import EncoderConfig, ProjectionConfig
from tests.support.encoders import make_lm
from tests.support.texts import ALICE

_SIZES = {"prompt_tokens": 12, "continuation_tokens": 4, "batch": 4, "steps": 2, "evaluation_windows": 8}
_PLAN = Plan(
    constraints=(("map_asr", 0.3), ("attack_success", 0.5)),
    levels=(0.3, 0.5),
    passages=8,
    attack=AttackBudget(prompts=16, tokens=8, tuning=4, beams=2, candidates=8, points=2),
    projection=ProjectionConfig(dim=8, **_SIZES),
    encoder=EncoderConfig(0.1, width=8, min_prompt_tokens=8, **_SIZES),
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    directory = tmp_path_factory.mktemp("constraint")
    make_lm(directory / "model")
    text = ALICE.read_text("utf-8")
    lines = []
    arguments = ({"alice": text}, text[-60_000:], _PLAN, directory / "work", lines.append, directory / "model")
    first = compare(*arguments)
    trained = len(lines)
    return first, compare(*arguments), trained, len(lines) - trained


def test_every_encoder_is_read_at_every_level(found):
    rows = found[0]["rows"]
    assert [(row["encoder"], row["level"]) for row in rows] == [
        (name, level) for name in ("MAP at 30 %", "language model at 50 %") for level in _PLAN.levels
    ]
    for row in rows:
        assert row["strongest"]["success"] >= row["map"]["success"]
        assert row["ppl"][1] <= row["ppl"][0] <= row["ppl"][2]
        assert row["epsilon"] > 0.0


def test_ratios_are_to_the_best_encoder_for_map(found):
    for row in found[0]["rows"]:
        base = next(one for one in found[0]["rows"] if one["level"] == row["level"] and one["encoder"][:3] == "MAP")
        assert row["ppl ratio to the best for MAP"][0] == pytest.approx(row["ppl"][0] / base["ppl"][0], rel=1e-3)


def test_a_second_run_trains_nothing_and_finds_the_same(found):
    first, second, lines, lines_again = found
    assert first["rows"] == second["rows"]
    assert lines_again == lines - len(_PLAN.constraints)
