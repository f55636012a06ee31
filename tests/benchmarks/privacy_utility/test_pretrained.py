"""The comparison on a pretrained model: pieces, resuming, calibration, results; on a tiny one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner

from benchmarks.privacy_utility.command import main
from benchmarks.privacy_utility.plan import PUBLISHED
from benchmarks.privacy_utility.pretrained.attack import search
from benchmarks.privacy_utility.pretrained.command import chosen
from benchmarks.privacy_utility.pretrained.plan import (
    CLEAR,
    CODES_ADAPTED,
    COUNTS_ADAPTED,
    NOTHING,
    AttackBudget,
    CodeTable,
    Plan,
    pieces_of,
)
from benchmarks.privacy_utility.pretrained.plots import draw
from benchmarks.privacy_utility.pretrained.report import results
from del_core.training.config import VariantConfig
from del_core.training.loop import CheckpointError

_PLAN = Plan(
    levels=(0.2,),
    seeds=(0, 1),
    repeated=(0.2,),
    codes={0.2: CodeTable(bits=3, frequency_power=0.5, epsilon=4.0)},
    epsilons=(CodeTable(bits=4, epsilon=6.0),),
    passages=(("alice", 6), ("other", 4)),
    attack=AttackBudget(prompts=16, tokens=8, tuning=4, beams=2, candidates=8, points=2),
    training=VariantConfig(
        prompt_tokens=16, continuation_tokens=4, batch=2, steps=2, learning_rate=1e-2, evaluation_windows=4,
        test_windows=1,
    ),
)  # fmt: skip
_ENDS = ("clear", "nothing", "gaussian-20", "metric-20")  # untrained ends and baselines


@pytest.fixture(scope="module")
def bench(tiny_pretrained, tmp_path_factory):
    """A bench of a random model, whose bundle has counts, and codes with an adapter."""
    work = tmp_path_factory.mktemp("comparison")
    return tiny_pretrained.bench(_PLAN, work / "work", work / "out" / "pieces")


@pytest.fixture(scope="module")
def found(bench):
    """The results of all pieces."""
    for piece in pieces_of(_PLAN):
        bench.run(piece)
    bench.blind()
    return results(bench.out, _PLAN)


def test_every_piece_has_rows_on_every_text(found):
    assert found["about"]["pieces_missing"] == []
    assert {(row["piece"], row["corpus"]) for row in found["rows"]} == {
        (piece.name, corpus) for piece in pieces_of(_PLAN) for corpus in ("alice", "other")
    }
    for row in found["rows"]:
        value, low, high = row["ppl"]
        assert 1.0 < low <= value <= high
        trained = row["piece"].endswith("-trained")
        assert row["steps"] == (2 if trained else 0)
        assert len(row["ppl_by_seed"]) == (2 if trained else 1)
        assert (row["gap between the controls closed"] is not None) == row["method"].startswith("this project")


def test_comparisons_are_between_methods_of_equal_steps_and_level(found):
    keys = {(one["method"], one["corpus"], one["steps"]) for one in found["comparisons"]}
    assert keys == {
        (method, corpus, steps)
        for method in (CODES_ADAPTED, COUNTS_ADAPTED)
        for corpus in ("alice", "other")
        for steps in (0, 2)
    }
    rows = {(row["method"], row["corpus"], row["steps"], row["level"]): row["ppl"][0] for row in found["rows"]}
    for one in found["comparisons"]:
        own, published = (rows[method, one["corpus"], one["steps"], 0.2] for method in (one["method"], PUBLISHED))
        clear = rows[CLEAR, one["corpus"], one["steps"], None]
        assert one["attack"] == "strongest"
        assert one[f"ppl ratio to {PUBLISHED}"][0] == pytest.approx(own / published, rel=1e-3)
        share = (published - own) / (published - clear)
        assert one["share of the gap closed"][0] == pytest.approx(share, rel=1e-2, abs=1e-3)
    assert [(one["steps"], one["corpus"]) for one in found["codes_and_counts"]] == [
        (steps, corpus) for steps in (0, 2) for corpus in ("alice", "other")
    ]


def test_the_noise_of_a_piece_is_the_attacked_one(bench, found):
    for name in ("codes-20", "counts-20", "published-20", "gaussian-20"):
        piece = json.loads((bench.out / f"{name}.json").read_text("utf-8"))
        family = piece["family"]
        assert piece["noise"] in found["attacks"][family]
        assert piece["noise"]["strongest"]["success"] >= piece["noise"]["map"]["success"]
    exact = json.loads((bench.out / "codes-epsilon-6.json").read_text("utf-8"))["noise"]
    assert exact["delta"] == 0.0
    assert exact["epsilon"] <= 6.0
    assert found["blind"]["strongest"]["success"] < max(
        point["strongest"]["success"] for point in found["attacks"]["counts"]
    ), "counts with the least noise must say more than nothing"


def test_what_shares_no_seed_is_not_compared(bench, found, tmp_path):
    pieces = ("codes-20-trained", "published-20-trained", "counts-20-trained-seed-1")
    controls = ("clear-adapter-trained-seed-1", "nothing-adapter-trained")
    for name in (*pieces, *controls):
        shutil.copy(bench.out / f"{name}.json", tmp_path)
    early = results(tmp_path, _PLAN)
    assert early["codes_and_counts"] == []
    assert {one["method"] for one in early["comparisons"]} == {CODES_ADAPTED}
    assert all("share of the gap closed" not in one for one in early["comparisons"])
    assert all(row["gap between the controls closed"] is None for row in early["rows"])


def test_training_leaves_the_model_and_what_is_done_alone(bench, found):
    before = {path.name: path.stat().st_mtime_ns for path in bench.out.iterdir()}
    losses = json.loads((bench.out / "clear.json").read_text("utf-8"))["nll"]
    for piece in pieces_of(_PLAN):
        bench.run(piece)
    assert {path.name: path.stat().st_mtime_ns for path in bench.out.iterdir()} == before
    (bench.out / "clear.json").unlink()
    bench.run(next(piece for piece in pieces_of(_PLAN) if piece.name == "clear"))
    assert json.loads((bench.out / "clear.json").read_text("utf-8"))["nll"] == losses, "an adapter was left behind"


def test_a_checkpoint_of_other_codes_is_refused(bench, found, tiny_pretrained, tmp_path):
    plan = replace(_PLAN, codes={0.2: CodeTable(bits=2, epsilon=4.0)})
    other = tiny_pretrained.bench(plan, bench.work, tmp_path)
    piece = next(piece for piece in pieces_of(plan) if piece.file == "codes-20-trained")
    with pytest.raises(CheckpointError, match="must be of this run"):
        other.run(piece)


def test_methods_are_compared_over_the_seeds_that_both_have(bench, found, tmp_path):
    for path in bench.out.glob("*.json"):
        if path.stem != "published-20-trained-seed-1":
            (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8")
    partial = results(tmp_path, _PLAN)
    assert partial["about"]["pieces_missing"] == ["published-20-trained-seed-1"]
    first = {row["piece"]: row["ppl_by_seed"][0] for row in partial["rows"] if row["corpus"] == "alice"}
    ratio = next(
        one[f"ppl ratio to {PUBLISHED}"][0]
        for one in partial["comparisons"]
        if (one["steps"], one["corpus"], one["method"]) == (2, "alice", CODES_ADAPTED)
    )
    assert ratio == pytest.approx(first["codes-20-trained"] / first["published-20-trained"], rel=1e-3)


def test_unfinished_results_say_what_is_missing(bench, found, tmp_path):
    for name in ("clear", "codes-20", "published-20"):
        (tmp_path / f"{name}.json").write_text((bench.out / f"{name}.json").read_text("utf-8"), "utf-8")
    partial = results(tmp_path, _PLAN)
    assert partial["about"]["pieces_done"] == 3
    assert "counts-20" in partial["about"]["pieces_missing"]
    (own,) = {one["method"] for one in partial["comparisons"]}
    assert own == CODES_ADAPTED
    assert all("share of the gap closed" not in one for one in partial["comparisons"]), "there is no control"
    assert all(row["gap between the controls closed"] is None for row in partial["rows"])
    assert results(tmp_path / "none", _PLAN)["rows"] == []


def test_a_method_is_never_between_controls_that_were_trained_less(bench, found, tmp_path):
    """Without controls of equal steps, those of more serve, to the method's disadvantage."""
    trained = ("codes-20", "codes-20-trained", "clear-adapter-trained", "nothing-adapter-trained")
    for kept, expected in (
        (trained, {0: 2, 2: 2}),
        (("codes-20-trained", "clear-adapter", "nothing-adapter"), {2: None}),
    ):
        place = tmp_path / str(len(kept))
        place.mkdir()
        for name in kept:
            (place / f"{name}.json").write_text((bench.out / f"{name}.json").read_text("utf-8"), "utf-8")
        rows = [row for row in results(place, _PLAN)["rows"] if row["method"] == CODES_ADAPTED]
        assert {row["steps"]: row["steps of the controls"] for row in rows} == expected
        assert all((row["gap between the controls closed"] is None) == (2 not in expected.values()) for row in rows)


def test_plots_are_drawn(found, tmp_path):
    draw(found, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"epsilon.png", "strongest.png"}


@pytest.mark.parametrize("target", [0.15, 0.4])
def test_a_search_finds_the_noise_of_a_success(target):
    """The success of a made-up attack is logistic in the log of the strength."""
    tried = []

    def measure(strength):
        tried.append(strength)
        return {"strength": strength, "strongest": {"success": 1 / (1 + 1 / strength**1.7)}}

    known = []
    point = search(measure, known, target, AttackBudget(points=4), first=1.0)
    assert point["strongest"]["success"] == pytest.approx(target, abs=0.015)
    again = search(measure, known, target, AttackBudget(points=4), first=1.0)
    assert again == point, "a known point was measured anew"
    assert len(tried) == len(known) <= 4


def test_pieces_are_named_once_and_untrained_ones_come_first():
    names = [piece.file for piece in pieces_of(Plan())]
    assert len(names) == len(set(names))
    assert {
        "clear-adapter",
        "nothing-adapter",
        "codes-40-trained",
        "codes-20-trained-seed-2",
        "published-20",
        *_ENDS,
    } <= set(names)
    first = names.index("clear-adapter-trained")
    assert all(not piece.trained for piece in pieces_of(Plan())[:first])
    methods = {piece.method for piece in pieces_of(Plan()) if piece.trained}
    assert methods == {CLEAR, NOTHING, CODES_ADAPTED, COUNTS_ADAPTED, PUBLISHED}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "smollm2"], "--model needs --out DIR"),
        (["--model", "smollm2", "--quick", "--out", "x"], "leave it out with --model"),
        (["--model", "smollm2", "--out", "x"], "--model needs --data DIR and --work DIR"),
        (["--quick", "--piece", "clear"], "--piece goes with --model"),
        (["--quick", "--bundle", "."], "--bundle goes with --model"),
    ],
)
def test_options_that_do_not_go_together(arguments, said):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_an_unknown_piece_is_named_with_the_known_ones():
    with pytest.raises(Exception, match=r"--piece must be one of clear, .*, got best"):
        chosen(pieces_of(Plan()), ["best"])
