"""The training loop that every stage shares: schedule, evaluation, early stopping, resumable checkpoints.

A stage provides its loss as a function of the step and draws all randomness from
``lm.noise.step_generator(seed, step)``. A run that was killed and resumed therefore ends with the same
weights as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from del_core.errors import DelError
from del_core.training.parallel import current_shard, differentiable

__all__ = ["CheckpointError", "Schedule", "fit", "identity"]


class CheckpointError(DelError):
    """A checkpoint belongs to another run or cannot be read."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up, constant, then linear decay to a tenth (WSD; arXiv 2405.18392).

    Unlike a cosine it does not need the end to be known while the constant part runs, so a run can be prolonged.
    """

    steps: int
    learning_rate: float
    warmup: int = 20
    decay: float = 0.25

    def factor(self, step: int) -> float:
        """The learning rate's factor in (0, 1] at ``step`` (0-based)."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        start = self.steps * (1 - self.decay)
        if step < start:
            return 1.0
        return 1.0 - 0.9 * (step - start) / max(1.0, self.steps - start)


def identity(config: Any, ignore: tuple[str, ...] = ("steps",)) -> dict[str, object]:
    """What of a stage's dataclass ``config`` makes a checkpoint belong to it: all but its length, which may change."""
    return {key: value for key, value in asdict(config).items() if key not in ignore}


def _save_atomically(state: dict[str, object], path: Path) -> None:
    # A killed worker leaves the old checkpoint or the new one, never half of one.
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def fit(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    loss: Callable[[int], torch.Tensor],
    schedule: Schedule,
    *,
    name: str,
    directory: Path,
    run: dict[str, object],
    evaluate: Callable[[], float] | None = None,
    evaluate_every: int = 100,
    checkpoint_every: int = 50,
    patience: int | None = None,
    keep_start: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float = 1.0,
    rates: Mapping[str, float] | None = None,
    progress: bool = True,
) -> float:
    """Minimises ``loss`` by AdamW and leaves the best parameters in place (the last ones without ``evaluate``).

    Under a process group every worker calls this with the same arguments; ``loss`` is then the mean of the worker's own
    rows (``Shard.of``), and what is returned, logged and decided is the same for all.

    Args:
        parameters: (name, parameter) pairs to train; everything else stays frozen.
        loss: differentiable scalar of the step number.
        name: names the progress bar, ``<name>.checkpoint`` and ``<name>.jsonl`` (the log) in ``directory``.
        run: what identifies the run (data checksum, seed, sizes); a checkpoint of another run is refused.
        evaluate: held-out loss (lower is better), called every ``evaluate_every`` steps and at the end.
        rates: learning rates of single parameters, by name, as multiples of the schedule's.
        keep_start: whether the parameters as given are evaluated too, and stay if training finds no better ones.
        patience: evaluations without improvement after which training stops; None never stops early.

    Returns:
        The best held-out loss, or the last training loss without ``evaluate``.

    Raises:
        CheckpointError: if the checkpoint in ``directory`` belongs to another run.
        FloatingPointError: if the loss is not finite.
    """
    named = dict(parameters)
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for key, parameter in named.items():
        groups.setdefault(((rates or {}).get(key, 1.0), parameter.dim() >= 2), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "weight_decay": weight_decay if matrix else 0.0, "rate": rate}
            for (rate, matrix), members in groups.items()
        ],
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
    )
    shard = current_shard()
    directory.mkdir(parents=True, exist_ok=True)
    path, log_path = directory / f"{name}.checkpoint", directory / f"{name}.jsonl"
    start, best, stale = 0, math.inf, 0
    best_parameters: dict[str, torch.Tensor] = {}
    run_id = json.dumps(run, sort_keys=True, default=str)
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["run"] != run_id:
            raise CheckpointError(
                f"{path}: belongs to another run ({state['run']}); this one is {run_id}. "
                "Choose another output directory or delete the checkpoint"
            )
        with torch.no_grad():
            for key, parameter in named.items():
                parameter.copy_(state["parameters"][key])
        optimizer.load_state_dict(state["optimizer"])
        start, best, stale, best_parameters = state["step"], state["best"], state["stale"], state["best_parameters"]

    step_loss = differentiable(named.values(), loss)

    def save(step: int) -> None:
        if not shard.first:
            return
        _save_atomically(
            {
                "run": run_id,
                "step": step,
                "best": best,
                "stale": stale,
                "best_parameters": best_parameters,
                "parameters": {key: p.detach() for key, p in named.items()},
                "optimizer": optimizer.state_dict(),
            },
            path,
        )

    began, last, averaged = time.monotonic(), math.nan, math.nan
    bar = tqdm(total=schedule.steps, initial=start, desc=name, unit="step", disable=not (progress and shard.first))
    shard.wait()  # all have read the checkpoint before the first worker writes another
    if keep_start and evaluate is not None and not start:
        best = shard.agree(evaluate())
        best_parameters = {key: p.detach().clone() for key, p in named.items()}
    with bar, log_path.open("a", encoding="utf-8") as log:
        for step in range(start, schedule.steps):
            if patience is not None and stale > patience:
                break
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * schedule.learning_rate * schedule.factor(step)
            value = step_loss(step)
            last = float(shard.mean(value))
            if not math.isfinite(last):
                raise FloatingPointError(f"{name}: loss is {last} at step {step}; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(named.values(), clip_norm)
            optimizer.step()
            averaged = last if math.isnan(averaged) else 0.95 * averaged + 0.05 * last
            bar.update()
            bar.set_postfix(loss=f"{averaged:.3f}", held_out=f"{best:.3f}")
            done = step + 1
            if evaluate is not None and (done % evaluate_every == 0 or done == schedule.steps):
                held_out = shard.agree(evaluate())
                improved = held_out < best
                stale = 0 if improved else stale + 1
                if improved:
                    best = held_out
                    best_parameters = {key: p.detach().clone() for key, p in named.items()}
                if shard.first:
                    figures = {"step": done, "loss": round(averaged, 4), "held_out_loss": round(held_out, 4)}
                    log.write(json.dumps({**figures, "seconds": round(time.monotonic() - began, 1)}) + "\n")
                    log.flush()
            if done % checkpoint_every == 0 or done == schedule.steps:
                save(done)
    if evaluate is None:
        return last
    with torch.no_grad():
        for key, parameter in named.items():
            parameter.copy_(best_parameters[key])
    return best
