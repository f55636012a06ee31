"""The comparison with baselines on a small model: complete rows, intervals, resuming."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.privacy_utility import command as privacy_utility
from benchmarks.privacy_utility.baselines import METRICS, TokenReplacement, calibrate_view, token_distances
from benchmarks.privacy_utility.page import markdown
from benchmarks.privacy_utility.pieces import Bench, Corpus
from benchmarks.privacy_utility.plan import ALL, ALONE, BEST, CLEAR, PUBLISHED, WITHOUT
from benchmarks.privacy_utility.plots import draw
from benchmarks.privacy_utility.report import results
from benchmarks.privacy_utility.tasks import Example, Segment, Task
from benchmarks.privacy_utility.understanding import TaskConfig
from del_core.audit.similarity import SentenceSimilarity
from del_core.lm.model import load_frozen_lm
from del_core.lm.text import read_texts
from del_core.training.base import BaseConfig, train_base
from tests.support.texts import ALICE

_SIZES = BaseConfig(
    vocabulary=400, hidden=64, layers=2, heads=2, feed_forward=128, context=64, batch=8, steps=60, learning_rate=4e-3
)
_PLAN = replace(
    privacy_utility.QUICK, levels=(0.3, 0.25), projection_steps=2, encoder_steps=2, decoder_steps=2,
    soft_prompt_steps=2, samples=2, validation_windows=8, passages=12, written=4, calibration_tokens=600,
    rewriting=True, bf16=False, alone=True,
    task=TaskConfig(steps=2, evaluate_every=2, validation_examples=4, most_tokens=16),
    sweep=((8, 2), (16, 4)), local=replace(_SIZES, hidden=32, steps=5),
)  # fmt: skip
_EXAMPLES = [
    Example((Segment(f"the {animal} said", True), Segment(" so", False)), label)
    for label, animals in enumerate((("rabbit", "mouse", "cat"), ("queen", "king", "hatter")))
    for animal in animals * 4
]
_TASK = Task("animal or not", (" no", " yes"), _EXAMPLES, _EXAMPLES[::3], _EXAMPLES[::2])
_FIELDS = {
    "method", "level", "corpus", "seeds", "attack_success", "attack_low", "attack_high", "attack_bits",
    "ppl", "ppl_low", "ppl_high", "ppl_to_clear",
    "coh", "coh_low", "coh_high", "coh_lift", "coh_sampled", "coh_sampled_low", "coh_sampled_lift_high",
    "rouge_l", "bits_per_token", "epsilon",
    "epsilon_vocabulary", "client_seconds", "client_mb",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: bench and results."""
    work = tmp_path_factory.mktemp("work")
    texts = read_texts([ALICE])
    train_base(texts, work / "base", _SIZES, progress=False)
    lm = load_frozen_lm(work / "base", texts)
    said: list[str] = []
    corpora = {"alice": Corpus(lm.windows(lm.test, 128, _PLAN.passages), lm.validation)}
    bench = Bench(lm, corpora, work, _PLAN, texts=texts, say=said.append, tasks=[_TASK])
    privacy_utility.run(bench)
    found = results(work)
    found["about"] = privacy_utility.about(bench, "test")
    return bench, found, said


def test_every_method_has_a_whole_row(run):
    rows = run[1]["rows"]
    assert max(Counter((row["method"], row["level"]) for row in rows).values()) == 1
    own = {BEST, BEST + WITHOUT, BEST + ALONE, PUBLISHED, PUBLISHED + WITHOUT}
    assert own < {row["method"] for row in rows}
    assert len(rows) == 4 + 2 * 9
    for row in rows:
        assert set(row) >= _FIELDS
        assert row["ppl_low"] <= row["ppl"] <= row["ppl_high"]
        assert row["attack_low"] <= row["attack_success"] <= row["attack_high"]


def test_baselines_are_compared_at_the_level(run):
    for row in run[1]["rows"]:
        if row["level"] is not None:
            assert row["attack_success"] == pytest.approx(row["level"], abs=0.12), row["method"]


def test_noise_is_set_for_every_text_by_itself(run):
    """Rare tokens are harder to guess: at equal success their text gets less noise."""
    bench, level = run[0], 0.25
    lm, unigram = bench.lm, bench.lm.unigram()
    rare = lm.validation[unigram[lm.validation] < 0.01]
    corpora = {**bench.corpora, "rare": Corpus(rare[: 2 * 128].view(2, 128), rare)}
    both = Bench(lm, corpora, bench.work, _PLAN, texts=bench.texts, say=lambda line: None)
    projection, variant = both.trained(BEST, level, 0)
    views = both.del_views(projection, variant, level)
    assert views["rare"].mechanism.ratio > 1.1 * views["alice"].mechanism.ratio
    distances = token_distances(lm.embeddings, METRICS[0])  # strengths are comparable in one metric only
    strength = {
        name: calibrate_view(
            lambda s: TokenReplacement(lm.embeddings, distances, s), level, both.calibration[name], both.log_prior
        ).strength
        for name in corpora
    }
    assert strength["rare"] > strength["alice"]
    replaced = {name: both.replacement(level, name) for name in corpora}
    for name in corpora:
        for view in (views[name], replaced[name]):
            assert view.attack(both.calibration[name], both.log_prior, 3).rate.success == pytest.approx(level, abs=0.06)


def test_comparisons_are_paired_and_complete(run):
    assert [one["level"] for one in run[1]["comparisons"]] == [0.25, 0.3]
    for one in run[1]["comparisons"]:
        assert {"level", "corpus", "share of the gap closed"} < set(one)
        for start, count in (
            ("ppl ratio to ", 6),
            ("coh minus ", 5),
            ("coh sampled minus ", 5),
            ("lift sampled minus ", 5),
            ("soft prompt of ", 3),
        ):
            assert sum(name.startswith(start) for name in one) == count, start


def test_every_text_counts_the_same_in_their_mean(run, tmp_path):
    """On a second text this project's passages are likelier by e^0.2 per token."""
    bench, found, _ = run
    assert all(one["corpus"] != ALL for one in found["comparisons"])
    for part in ("scores", "coherence"):
        (tmp_path / part).mkdir()
        for path in sorted((bench.work / part).glob("*.npz")):
            with np.load(path) as arrays:
                both = {name: arrays[name] for name in arrays.files}
            gain = 0.2 * path.name.startswith("best-")
            both |= {name.replace("alice", "second"): value - gain * ("nll" in name) for name, value in both.items()}
            np.savez(tmp_path / part / path.name, **both)
    for path in (bench.work / "scores").glob("*.json"):
        about = json.loads(path.read_text())
        about["corpora"]["second"] = about["corpora"]["alice"]
        (tmp_path / "scores" / path.name).write_text(json.dumps(about))
    again = results(tmp_path)["comparisons"]
    assert [(one["level"], one["corpus"]) for one in again] == [
        (level, corpus) for level in (0.25, 0.3) for corpus in ("alice", "second", ALL)
    ]
    for one, mean in zip(again[::3], again[2::3], strict=True):
        ratio = f"ppl ratio to {PUBLISHED}"
        assert mean[ratio][0] == pytest.approx(one[ratio][0] * (1 + np.exp(-0.2)) / 2, abs=2e-4)
        coherence = f"coh sampled minus {PUBLISHED}"
        assert mean[coherence][0] == pytest.approx(one[coherence][0], abs=2e-4)
        assert mean.keys() == one.keys()
    page = markdown(
        {**found, "comparisons": again, "about": found["about"] | {"passages": {"alice": 12, "second": 12}}}
    )
    assert f"| {ALL} | 30% |" in page


def test_understanding_is_compared_with_the_clear_prompt(run):
    rows = {row["method"]: row for row in run[1]["tasks"]}
    assert set(rows) == {CLEAR, BEST, PUBLISHED}
    for method, row in rows.items():
        assert row["examples"] == len(_TASK.test)
        assert 0 <= row["accuracy"][1] <= row["accuracy"][0] <= row["accuracy"][2] <= 1
        assert ("accuracy minus clear" in row) == (method != CLEAR)


def test_two_processes_share_the_pieces(run):
    bench, done, c_done = run[0], [], threading.Event()
    other = Bench(bench.lm, bench.corpora, bench.work, _PLAN, texts=bench.texts, say=lambda line: None)
    # What another process is at comes last, and is looked at again when that one has left it.
    pieces = {"a": lambda: done.append("a, again"), "c": c_done.set}
    thread = threading.Thread(target=other.run, args=(pieces,))

    def first():
        thread.start()
        assert c_done.wait(30)
        assert thread.is_alive()
        done.append("a")

    bench.run({"a": first})
    thread.join(30)
    assert done == ["a", "a, again"]


def test_a_second_call_computes_nothing(run):
    bench, found, said = run
    before = len(said)
    privacy_utility.run(bench)
    assert len(said) == before
    again = results(bench.work)
    assert json.dumps(again["rows"]) == json.dumps(found["rows"])


def test_text_is_scored_later_where_the_sentence_model_is(run, monkeypatch):
    bench, found, said = run
    assert not any("coherence" in line for line in said)
    scored = {path.name: path.read_bytes() for path in (bench.work / "coherence").iterdir()}
    assert scored
    for name in scored:
        (bench.work / "coherence" / name).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(SentenceSimilarity, "installed", lambda: None)
        bench.coherence()
    assert 'pip install "del-serve[audit]"' in said[-1]
    assert not [*(bench.work / "coherence").iterdir()]
    without = results(bench.work)["rows"]
    assert all(row["coh"] is None for row in without)
    assert [row["rouge_l"] for row in without] == [row["rouge_l"] for row in found["rows"]]
    bench.coherence()
    del said[-1]
    assert json.dumps(results(bench.work)["rows"]) == json.dumps(found["rows"])


def test_page_and_plots_are_drawn(run, tmp_path):
    page = markdown(run[1])
    for row in run[1]["rows"]:
        assert f"| {row['method']} |" in page
    draw(run[1], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"privacy_utility.png", "training.png", "sweep.png"}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_the_committed_page_is_made_from_the_committed_results():
    """The page of the large run describes an earlier protocol and is not made anew."""
    directory = Path(privacy_utility.__file__).parents[1] / "results" / "privacy_utility_small"
    found = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert markdown(found) == (directory / "results.md").read_text(encoding="utf-8")


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
