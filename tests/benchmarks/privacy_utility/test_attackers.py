"""Attackers who train a model, on the noises of the comparison; on a tiny model."""

from __future__ import annotations

import json

import pytest

from benchmarks.privacy_utility.pretrained.attackers import AttackerBench, attacked_pieces
from benchmarks.privacy_utility.pretrained.plan import AttackBudget, CodeTable, Plan
from tests.support.texts import ALICE

_PLAN = Plan(
    levels=(0.2,),
    codes={0.2: CodeTable(bits=3, epsilon=4.0)},
    epsilons=(CodeTable(bits=4, epsilon=6.0),),
    passages=(("alice", 2),),
    attack=AttackBudget(prompts=8, tokens=8, tuning=2, beams=2, candidates=8, points=1),
)


@pytest.fixture(scope="module")
def attackers(tiny_pretrained, tmp_path_factory):
    work = tmp_path_factory.mktemp("attackers")
    bench = tiny_pretrained.bench(_PLAN, work / "work", work / "pieces")
    budget = "quick,training=0.01,search=0.01,beams=2,candidates=8"
    return AttackerBench(bench, [ALICE.read_text("utf-8")], work / "attackers", budget)


def test_each_noise_is_attacked_once(attackers):
    pieces = attacked_pieces(_PLAN)
    assert [piece.name for piece in pieces] == ["codes-20", "published-20", "codes-epsilon-6"]
    for piece in pieces:
        attackers.run(piece)
    found = {one["piece"]: one for one in attackers.results()["noises"]}
    assert list(found) == [piece.name for piece in pieces]
    for name, one in found.items():
        assert list(one["attacks"]) == ["map", "sequence", "bidirectional", "combined"]
        assert all(rate["tokens"] == 8 * 8 for rate in one["attacks"].values())
        assert one["family"] == ("counts" if name == "published-20" else "codes")
        # The map attack of the comparison has the same prompts and the same noise.
        (point,) = (
            point
            for point in json.loads((attackers.bench.out / f"attack-{one['family']}.json").read_text("utf-8"))["points"]
            if point["epsilon"] == one["noise"]["epsilon"]
        )
        assert one["attacks"]["map"] == point["map"]
    before = [path.stat().st_mtime_ns for path in sorted(attackers.out.iterdir())]
    attackers.run(pieces[0])
    assert [path.stat().st_mtime_ns for path in sorted(attackers.out.iterdir())] == before
