"""The shared training loop: an interrupted run ends like an uninterrupted one."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from del_core.lm.noise import step_generator
from del_core.training.loop import CheckpointError, Run, Schedule, fit


class _InterruptedError(Exception):
    pass


def _regression(directory, steps, stop_at=None, identity=None):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)

    def loss(step):
        if step == stop_at:
            raise _InterruptedError
        x = torch.randn(8, 4, generator=step_generator(5, step))
        return (layer(x) - 2 * x).square().mean()

    best = fit(
        layer.named_parameters(),
        loss,
        Run(
            "regression",
            directory,
            Schedule(steps, 0.05, warmup=5),
            identity=identity or {"seed": 5},
            evaluate_every=7,
            checkpoint_every=10,
            progress=False,
        ),
        lambda: float((layer.weight - 2 * torch.eye(4)).detach().square().sum()),
    )
    return layer.weight.detach().clone(), best


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path):
    expected, best = _regression(tmp_path / "whole", 60)
    with pytest.raises(_InterruptedError):
        _regression(tmp_path / "parts", 60, stop_at=37)
    resumed, resumed_best = _regression(tmp_path / "parts", 60)
    assert torch.equal(resumed, expected)
    assert resumed_best == best < 0.5
    logged = [json.loads(line)["step"] for line in (tmp_path / "whole/regression.jsonl").read_text().splitlines()]
    assert logged == [*range(7, 60, 7), 60]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    _regression(tmp_path, 10)
    with pytest.raises(CheckpointError, match="must be of this run"):
        _regression(tmp_path, 10, identity={"seed": 6})


def test_a_diverging_run_stops_with_the_step_named(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(FloatingPointError, match="loss is inf at step 3"):
        fit(
            [("p", parameter)],
            lambda step: parameter.sum() * (float("inf") if step == 3 else 1.0),
            Run("diverging", tmp_path, Schedule(10, 0.1), identity={}, progress=False),
        )


def test_training_stops_when_held_out_loss_no_longer_falls(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(1))
    seen = []
    fit(
        [("p", parameter)],
        lambda step: seen.append(step) or parameter.square().sum() + 1.0,
        Run("flat", tmp_path, Schedule(1000, 0.1), identity={}, evaluate_every=10, patience=3, progress=False),
        lambda: 1.0,
    )
    assert len(seen) == 50  # one improvement, then patience + 1 = 4 evaluations without


def test_the_schedule_warms_up_holds_and_decays():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(factors[10:50]) == {1.0}
    assert all(a > b for a, b in pairwise(factors[50:]))
    assert 0.1 <= factors[-1] < 0.13
