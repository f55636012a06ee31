"""Tasks on a pretrained model: every way of reading, what is trained, resuming; on a tiny one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.privacy_utility.pretrained.plan import AttackBudget, CodeTable, Plan
from benchmarks.privacy_utility.pretrained.readers import CodesReader
from benchmarks.privacy_utility.pretrained.tasks import (
    READINGS,
    TaskBench,
    TaskPiece,
    TaskPlan,
    task_pieces,
    task_results,
)
from benchmarks.privacy_utility.tasks import Example, Segment, Task
from del_core.lm.noise import step_generator

_PLAN = Plan(
    levels=(0.2,),
    codes={0.2: CodeTable(bits=3, frequency_power=0.5, epsilon=4.0)},
    epsilons=(CodeTable(bits=4, epsilon=6.0),),
    passages=(("alice", 2),),
    attack=AttackBudget(prompts=8, tokens=8, tuning=2, beams=2, candidates=8, points=1),
)
_TASKS = TaskPlan(learned=45, steps=4, batch=8, most_tokens=16, validation_examples=16, test_examples=40,
                  learning_rate=3e-2, adapter_learning_rate=1e-2)  # fmt: skip


def _task() -> Task:
    """Does the river or the house occur?"""
    rng = np.random.default_rng(0)
    words = (" river", " house")
    examples = []
    for _ in range(160):
        label = int(rng.integers(2))
        text = "The old" + words[label] + " and the" + str(rng.choice([" dog", " fox", " sea"]))
        examples.append(Example((Segment(text, True), Segment(" so", False)), label))
    return Task("which word", ("a", "b"), examples[80:], examples[:40], examples[40:80])


@pytest.fixture(scope="module")
def bench(tiny_pretrained, tmp_path_factory):
    """A bench of one task that a random model can learn."""
    work = tmp_path_factory.mktemp("tasks")
    comparison = tiny_pretrained.bench(_PLAN, work / "work", work / "pieces")
    made = TaskBench(comparison, [_task()], _TASKS, work / "tasks")
    for piece in made.pieces:
        made.run(piece)
    return made


def _rows(bench):
    return {row["reading"]: row for row in task_results(bench.out, tuple(bench.tasks))["rows"]}


def test_every_way_of_reading_has_a_row(bench):
    found = task_results(bench.out, tuple(bench.tasks))
    assert found["about"]["pieces_missing"] == []
    assert [row["reading"] for row in found["rows"]] == list(READINGS)
    steps = [row["steps"] for row in found["rows"]]
    assert steps == [0, 45, 49, 49, 49, 49, 49]
    noisy = {row["reading"]: row["epsilon"] for row in found["rows"] if row["epsilon"] is not None}
    assert set(noisy) == {"codes that ship", "codes at 20%", "counts as published at 20%"}
    for row in found["rows"]:
        value, low, high = row["accuracy"]
        assert low <= value <= high
        assert row["examples"] == 40


def test_the_clear_prompt_is_learned_and_the_control_knows_nothing(bench):
    rows = _rows(bench)
    assert rows["clear prompt"]["accuracy"][0] > 0.85
    blind = json.loads((bench.out / f"{TaskPiece('which word', 'no prompt').file}.json").read_text("utf-8"))
    assert len(set(blind["scores"])) == 1, "every prompt must read the same"
    assert rows["no prompt"]["accuracy"][0] in (rows["no prompt"]["majority"], 1 - rows["no prompt"]["majority"])


def test_what_is_done_stays_and_the_model_too(bench):
    before = {path.name: path.stat().st_mtime_ns for path in bench.out.iterdir()}
    path = bench.out / f"{TaskPiece('which word', 'codes that ship').file}.json"
    scores = json.loads(path.read_text("utf-8"))["scores"]
    path.unlink()
    for piece in bench.pieces:
        bench.run(piece)
    after = {path.name: path.stat().st_mtime_ns for path in bench.out.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {path.name}
    assert json.loads(path.read_text("utf-8"))["scores"] == scores


def test_missing_pieces_are_named(bench, tmp_path):
    found = task_results(tmp_path, ("which word",))
    assert found["rows"] == []
    assert found["about"]["pieces_missing"] == [piece.file for piece in task_pieces(("which word",))]
    assert "which-word-counts-as-published-at-20" in found["about"]["pieces_missing"]


def test_shipped_codes_read_the_trained_decode_table(tiny_pretrained):
    reader = CodesReader.shipped(tiny_pretrained.bundle, "coded")
    tokens = torch.arange(20)
    released = reader.release(tokens, step_generator(0, 0))
    decode = torch.from_numpy(tiny_pretrained.bundle.decoder("coded")["codes"])
    assert torch.equal(reader.read(released), decode[0][released[:, 0]])
