"""The comparison with the rivals on a model that takes seconds: whole rows, sound intervals, going on where it was."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import privacy_utility
from benchmarks._privacy_utility_pieces import BEST, PUBLISHED, WITHOUT, Bench
from benchmarks._privacy_utility_report import draw, markdown, results
from del_core.training.base import BaseConfig, train_base
from del_core.training.lm import load_frozen_lm
from del_core.training.text import read_texts
from tests.training.paths import ALICE

_SIZES = BaseConfig(
    vocabulary=400, hidden=64, layers=2, heads=2, feed_forward=128, context=64, batch=8, steps=60, learning_rate=4e-3
)
_PLAN = replace(
    privacy_utility.QUICK, levels=(0.3,), projection_steps=2, encoder_steps=2, decoder_steps=2, soft_prompt_steps=2,
    validation_windows=8, passages=12, written=4, calibration_tokens=600, rewriting=True, bf16=False,
    sweep=((8, 2), (16, 4)), local=replace(_SIZES, hidden=32, steps=5),
)  # fmt: skip
_FIELDS = {
    "method", "level", "corpus", "seeds", "attack_success", "attack_low", "attack_high", "ppl", "ppl_low", "ppl_high",
    "coh", "coh_low", "coh_high", "rouge_l", "bits_per_token", "epsilon", "epsilon_vocabulary", "client_seconds",
    "client_mb",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: bench and results."""
    work = tmp_path_factory.mktemp("work")
    texts = read_texts([ALICE])
    train_base(texts, work / "base", _SIZES, progress=False)
    lm = load_frozen_lm(work / "base", texts)
    said: list[str] = []
    bench = Bench(lm, {"alice": lm.windows(lm.test, 128, _PLAN.passages)}, work, _PLAN, texts=texts, say=said.append)
    privacy_utility.run(bench)
    found = results(work)
    found["about"] = privacy_utility.about(bench, "test")
    return bench, found, said


def test_every_method_has_a_whole_row(run):
    rows = run[1]["rows"]
    assert Counter(row["method"] for row in rows).most_common(1)[0][1] == 1
    assert {BEST, BEST + WITHOUT, PUBLISHED, PUBLISHED + WITHOUT} < {row["method"] for row in rows}
    assert len(rows) == 11
    for row in rows:
        assert set(row) >= _FIELDS
        assert row["ppl_low"] <= row["ppl"] <= row["ppl_high"]
        assert row["attack_low"] <= row["attack_success"] <= row["attack_high"]


def test_rivals_are_compared_at_the_level(run):
    for row in run[1]["rows"]:
        if row["level"] is not None:
            assert row["attack_success"] == pytest.approx(row["level"], abs=0.12), row["method"]


def test_comparisons_are_paired_and_complete(run):
    (one,) = run[1]["comparisons"]
    assert {"level", "corpus", "share of the gap closed"} < set(one)
    assert sum(name.startswith("ppl ratio to ") for name in one) == 6
    assert sum(name.startswith("soft prompt of ") for name in one) == 2


def test_a_second_call_computes_nothing(run):
    bench, found, said = run
    before = len(said)
    privacy_utility.run(bench)
    assert len(said) == before
    again = results(bench.work)
    assert json.dumps(again["rows"]) == json.dumps(found["rows"])


def test_page_and_plots_are_drawn(run, tmp_path):
    page = markdown(run[1])
    for row in run[1]["rows"]:
        assert f"| {row['method']} |" in page
    draw(run[1], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"privacy_utility.png", "training.png", "sweep.png"}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_scores_are_those_of_the_passages(run):
    bench, found, _ = run
    with np.load(bench.work / "scores" / "clear.npz") as arrays:
        clear = float(np.exp(arrays["nll alice"].mean()))
    assert clear == pytest.approx(
        next(row["ppl"] for row in found["rows"] if row["method"] == "clear prompt"), abs=1e-3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --quick or --data DIR"),
        (["--quick", "--data", "."], "give either --quick or --data DIR"),
        (["--data", "."], "--data needs --work DIR"),
    ],
)
def test_what_is_missing_is_named(arguments, message):
    result = CliRunner().invoke(privacy_utility.main, arguments)
    assert result.exit_code == 2
    assert message in result.output
