"""The training loop of every stage: schedule, evaluation, early stopping, resumable checkpoints.

A loss is a function of the step and draws all randomness from ``step_generator(seed, step)``, so a
run that was killed and resumed ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from del_core.errors import DelError
from del_core.training.parallel import current_shard, differentiable


class CheckpointError(DelError):
    """A checkpoint belongs to another run or cannot be read."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up, constant rate, then linear decay to a tenth (WSD; arXiv 2405.18392).

    While the rate is constant it does not depend on the end, so a run can be prolonged.
    """

    steps: int
    learning_rate: float
    warmup: int = 20
    decay: float = 0.25

    def factor(self, step: int) -> float:
        """Return the factor in (0, 1] of the learning rate at ``step``, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = self.steps * (1 - self.decay)
        if step < start:
            return 1.0
        return 1.0 - 0.9 * (step - start) / max(1.0, self.steps - start)


@dataclass(frozen=True)
class Run:
    """Settings of one run of :func:`fit`."""

    name: str  # of the progress bar, <name>.checkpoint and <name>.jsonl
    directory: Path
    schedule: Schedule
    identity: Mapping[str, object]  # fit refuses a checkpoint of another one
    evaluate_every: int = 100  # steps; the last step is always evaluated
    checkpoint_every: int = 50
    patience: int | None = None  # evaluations without improvement after which training stops
    keep_start: bool = False  # keep the given parameters if training finds no better ones
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)  # multiples of the learning rate, by parameter
    progress: bool = True

    def optimizer(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.AdamW:
        """Return the optimizer. Only matrices decay, and every group knows its rate's multiple."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            groups.setdefault((self.rates.get(name, 1.0), parameter.dim() >= 2), []).append(parameter)
        return torch.optim.AdamW(
            [
                {"params": members, "weight_decay": self.weight_decay if matrix else 0.0, "rate": rate}
                for (rate, matrix), members in groups.items()
            ],
            lr=self.schedule.learning_rate,
            betas=(0.9, 0.95),
        )


class _Checkpoint:
    """The saved state of a run: parameters, optimizer, step and the best parameters so far."""

    def __init__(self, run: Run, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.path = run.directory / f"{run.name}.checkpoint"
        self.identity = json.dumps(dict(run.identity), sort_keys=True, default=str)
        self.parameters, self.optimizer = parameters, optimizer
        self.step, self.best, self.stale = 0, math.inf, 0
        self.best_parameters: dict[str, torch.Tensor] = {}
        if self.path.exists():
            self._load()

    @torch.no_grad()
    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        if state["run"] != self.identity:
            raise CheckpointError(
                f"{self.path} must be of this run, {self.identity}, got {state['run']}: "
                "choose another output directory or delete the checkpoint"
            )
        for name, parameter in self.parameters.items():
            parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best, self.stale = state["step"], state["best"], state["stale"]
        self.best_parameters = state["best_parameters"]

    def save(self) -> None:
        """Write the file; a killed worker leaves the old one or the new one, never a part."""
        state = {
            "run": self.identity,
            "step": self.step,
            "best": self.best,
            "stale": self.stale,
            "best_parameters": self.best_parameters,
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def judge(self, held_out: float) -> None:
        """Keep the parameters if their held-out loss is the least so far."""
        if held_out < self.best:
            self.best, self.stale = held_out, 0
            self.best_parameters = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        else:
            self.stale += 1

    @torch.no_grad()
    def restore_best(self) -> None:
        """Put the best parameters in place."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.best_parameters[name])


def fit(
    parameters: Iterable[tuple[str, nn.Parameter]],
    loss: Callable[[int], torch.Tensor],
    run: Run,
    evaluate: Callable[[], float] | None = None,
) -> float:
    """Minimize ``loss`` by AdamW, keep the best parameters and return their held-out loss.

    ``evaluate`` returns the held-out loss. Without it the last parameters stay, and the last
    training loss is returned. Under a process group every worker calls this with the same arguments
    and gets the same result; ``loss`` is then the mean of the worker's own rows (``Shard.of``).

    Raises:
        CheckpointError: the checkpoint in the run's directory belongs to another run.
        FloatingPointError: the loss is not finite.
    """
    named = dict(parameters)
    schedule, shard = run.schedule, current_shard()
    run.directory.mkdir(parents=True, exist_ok=True)
    optimizer = run.optimizer(named)
    state = _Checkpoint(run, named, optimizer)
    step_loss = differentiable(named.values(), loss)
    began, last, averaged = time.monotonic(), math.nan, math.nan
    bar = tqdm(
        total=schedule.steps, initial=state.step, desc=run.name, unit="step", disable=not (run.progress and shard.first)
    )
    shard.wait()  # all have read the checkpoint before the first worker writes another
    if run.keep_start and evaluate is not None and not state.step:
        state.judge(shard.agree(evaluate()))
    with bar, (run.directory / f"{run.name}.jsonl").open("a", encoding="utf-8") as log:
        for step in range(state.step, schedule.steps):
            if run.patience is not None and state.stale > run.patience:
                break
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * schedule.learning_rate * schedule.factor(step)
            value = step_loss(step)
            last = float(shard.mean(value))
            if not math.isfinite(last):
                raise FloatingPointError(f"{run.name}: loss is {last} at step {step}; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(named.values(), run.clip_norm)
            optimizer.step()
            averaged = last if math.isnan(averaged) else 0.95 * averaged + 0.05 * last
            bar.update()
            best = {"held_out": f"{state.best:.3f}"} if math.isfinite(state.best) else {}
            bar.set_postfix(loss=f"{averaged:.3f}", **best)
            state.step = step + 1
            final = state.step == schedule.steps
            if evaluate is not None and (state.step % run.evaluate_every == 0 or final):
                held_out = shard.agree(evaluate())
                state.judge(held_out)
                if shard.first:
                    figures = {"step": state.step, "loss": round(averaged, 4), "held_out_loss": round(held_out, 4)}
                    log.write(json.dumps({**figures, "seconds": round(time.monotonic() - began, 1)}) + "\n")
                    log.flush()
            if shard.first and (state.step % run.checkpoint_every == 0 or final):
                state.save()
    if evaluate is None:
        return last
    state.restore_best()
    return state.best
