"""Text sampling and the shared training loop: nothing depends on when a run was interrupted."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from del_core.lm.noise import step_generator
from del_core.lm.text import TextError, TokenWindows, read_texts, split_text
from del_core.training.loop import CheckpointError, Schedule, fit


def test_splits_are_disjoint_and_lose_nothing():
    text = "".join(f"line {i}\n" for i in range(1000))
    splits = split_text([text], held_out=0.1)
    assert splits.train[0] + splits.validation[0] + splits.test[0] == text
    assert 0.09 < (len(splits.validation[0]) + len(splits.test[0])) / len(text) < 0.11


def test_every_window_of_an_epoch_is_seen_once():
    windows = TokenWindows(torch.arange(1003), length=10, seed=3)
    for epoch in range(2):
        starts = [int(windows._window(epoch * windows.per_epoch + i)[0]) for i in range(windows.per_epoch)]
        assert len(set(starts)) == windows.per_epoch
        assert {start % 10 for start in starts} == {starts[0] % 10}


def test_what_is_between_the_first_windows_is_all_else():
    tokens = torch.arange(107)
    windows = TokenWindows(tokens, 10, seed=0)
    for count in (1, 4, 10, 99):
        first, between = windows.first(count), windows.between(count)
        assert first.shape == (min(count, 10), 10)
        assert sorted(torch.cat([first.flatten(), between]).tolist()) == list(range(100))


def test_a_batch_depends_on_nothing_but_seed_and_step():
    tokens = torch.arange(5000)
    forwards = [TokenWindows(tokens, 16, seed=1).batch(step, 4) for step in range(100)]
    windows = TokenWindows(tokens, 16, seed=1)
    for step in reversed(range(100)):
        assert torch.equal(windows.batch(step, 4), forwards[step])
    assert not torch.equal(TokenWindows(tokens, 16, seed=2).batch(0, 4), forwards[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "not found"),
        (lambda p: p.write_bytes(b"\xff\xfe\xfd"), "not UTF-8 at byte 0"),
        (lambda p: p.write_text("  \n"), "is empty"),
        (lambda p: p.mkdir(), "is a directory"),
    ],
)
def test_a_bad_text_file_is_named(tmp_path, make, message):
    path = tmp_path / "some.txt"
    make(path)
    with pytest.raises(TextError, match=message) as error:
        read_texts([path])
    assert str(path) in str(error.value)


def test_too_little_text_is_refused():
    with pytest.raises(TextError, match="19 tokens are too few; at least 20"):
        TokenWindows(torch.arange(19), 10, seed=0)


def test_every_seed_and_every_step_has_noise_of_its_own():
    drawn = {
        tuple(torch.rand(4, generator=step_generator(seed, step)).tolist()) for seed in range(20) for step in range(20)
    }
    assert len(drawn) == 400
    assert torch.equal(torch.rand(4, generator=step_generator(3, 7)), torch.rand(4, generator=step_generator(3, 7)))


class _InterruptedError(Exception):
    pass


def _regression(directory, steps, stop_at=None, run=None):
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
        Schedule(steps, 0.05, warmup=5),
        name="regression",
        directory=directory,
        run=run or {"seed": 5},
        evaluate=lambda: float((layer.weight - 2 * torch.eye(4)).detach().square().sum()),
        evaluate_every=7,
        checkpoint_every=10,
        progress=False,
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
    with pytest.raises(CheckpointError, match="belongs to another run"):
        _regression(tmp_path, 10, run={"seed": 6})


def test_a_diverging_run_stops_with_the_step_named(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(FloatingPointError, match="loss is inf at step 3"):
        fit(
            [("p", parameter)],
            lambda step: parameter.sum() * (float("inf") if step == 3 else 1.0),
            Schedule(10, 0.1),
            name="diverging",
            directory=tmp_path,
            run={},
            progress=False,
        )


def test_training_stops_when_held_out_loss_no_longer_falls(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(1))
    seen = []
    fit(
        [("p", parameter)],
        lambda step: seen.append(step) or parameter.square().sum() + 1.0,
        Schedule(1000, 0.1),
        name="flat",
        directory=tmp_path,
        run={},
        evaluate=lambda: 1.0,
        evaluate_every=10,
        patience=3,
        progress=False,
    )
    assert len(seen) == 50  # one improvement, then patience + 1 = 4 evaluations without


def test_the_schedule_warms_up_holds_and_decays():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert set(factors[10:50]) == {1.0}
    assert all(a > b for a, b in pairwise(factors[50:]))
    assert 0.1 <= factors[-1] < 0.13
