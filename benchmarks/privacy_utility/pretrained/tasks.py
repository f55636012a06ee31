"""Understanding tasks on a pretrained model: does it still solve them behind codes and counts?

Every task is learned from the clear prompt first, by the soft prompt and the adapter of the shipped
variant of codes. From there every way of reading is trained for as many further steps on the same
batches: the clear prompt, codes, counts with the linear decoder as published, and a control that
reads one token in place of every private segment. The label is that of the likelier verbalizer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.privacy_utility.plan import NOISE_SEED, PUBLISHED
from benchmarks.privacy_utility.pretrained.bench import PretrainedBench
from benchmarks.privacy_utility.pretrained.plan import CODES, COUNTS, Piece
from benchmarks.privacy_utility.pretrained.readers import ClearReader, CodesReader, Reader
from benchmarks.privacy_utility.tasks import Example, Task
from benchmarks.privacy_utility.understanding import FloatArray, auc_interval, batches, correct
from del_core.audit.intervals import Rate
from del_core.lm.adapter import AttachedAdapter, attached, load_tensors
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import IGNORED, judged_logits
from del_core.training.loop import Run, Schedule, fit
from del_core.training.sources import end_token

__all__ = ["READINGS", "TaskBench", "TaskPiece", "TaskPlan", "task_pieces", "task_results"]

UNTRAINED, LEARNED = "clear prompt, untrained", "clear prompt, learned"
CLEAR, NOTHING = "clear prompt", "no prompt"
SHIPPED_CODES = "codes that ship"
CODES_20, COUNTS_20 = "codes at 20%", "counts as published at 20%"
READINGS = (UNTRAINED, LEARNED, SHIPPED_CODES, NOTHING, CLEAR, CODES_20, COUNTS_20)
"""Ways of reading a prompt, in the order of the work."""
_LEVEL = 0.2
_FILE_NAME = str.maketrans({" ": "-", ",": None, "%": None})


@dataclass(frozen=True)
class TaskPlan:
    """Extent of a run. Private segments are truncated to ``most_tokens`` tokens.

    Attributes:
        learned: steps on the clear prompt. steps: further steps, for every way of reading.
    """

    learned: int = 40
    steps: int = 20
    batch: int = 8
    most_tokens: int = 64
    validation_examples: int = 32
    test_examples: int = 256
    learning_rate: float = 3e-3
    adapter_learning_rate: float = 5e-4
    decoder_learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class TaskPiece:
    """One task read in one way."""

    task: str
    reading: str

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"{self.task}-{self.reading}".translate(_FILE_NAME).lower()


def task_pieces(tasks: Sequence[str]) -> tuple[TaskPiece, ...]:
    """Return all pieces, task by task."""
    return tuple(TaskPiece(task, reading) for task in tasks for reading in READINGS)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Token ids of a prompt, which of them are private, and its label."""

    ids: torch.Tensor
    private: torch.Tensor
    label: int

    def __len__(self) -> int:
        return len(self.ids)


class TaskBench:
    """The pieces of all tasks on one model.

    Args:
        bench: model, bundle, codes and attacked points of the comparison. The first codes that it
            compares by epsilon are those that ship.
        out: directory of the finished pieces.
    """

    def __init__(self, bench: PretrainedBench, tasks: Sequence[Task], plan: TaskPlan, out: Path) -> None:
        self.bench, self.tasks, self.plan, self.out = bench, {task.name: task for task in tasks}, plan, out
        self.lm = bench.lm
        out.mkdir(parents=True, exist_ok=True)

    @property
    def pieces(self) -> tuple[TaskPiece, ...]:
        """All pieces."""
        return task_pieces(tuple(self.tasks))

    def run(self, piece: TaskPiece) -> None:
        """Compute one piece, unless its file exists."""
        path = self.out / f"{piece.file}.json"
        if path.exists():
            return
        began, bench, plan = time.monotonic(), self.bench, self.plan
        task = self.tasks[piece.task]
        reader, point = self._reader(piece.reading)
        shipped = bench.bundle.adapter(bench.coded_name)
        assert shipped is not None
        rows = nn.Parameter(torch.from_numpy(bench.bundle.soft_prompt(bench.coded_name)))
        steps, losses = 0, {}
        torch.manual_seed(plan.seed)
        with attached(self.lm.model, shipped.shape) as layers:
            load_tensors(layers, shipped.tensors)
            if piece.reading != UNTRAINED:
                steps, first = plan.learned, TaskPiece(piece.task, LEARNED)
                losses["learned"] = self._fit(first, task, ClearReader(self.lm), rows, layers, (0, steps))
                if piece.reading != LEARNED:
                    further = (steps, steps + plan.steps)
                    steps, losses["held_out"] = further[1], self._fit(piece, task, reader, rows, layers, further)
            test = self._evenly(task.test, plan.test_examples)
            if piece.reading == UNTRAINED:
                with layers.disabled():
                    scores = self._scores(piece, task, test, reader, rows.detach()[:0])
            else:
                scores = self._scores(piece, task, test, reader, rows.detach())
        labels = np.array([example.label for example in test])
        accuracy = Rate(int(correct(scores, labels).sum()), len(labels))
        bench.write(
            path,
            {
                "task": piece.task,
                "reading": piece.reading,
                "noise": point,
                "training": {"steps": steps, **{name: round(loss, 4) for name, loss in losses.items()}},
                "settings": asdict(plan),
                "majority": round(max(labels.mean(), 1.0 - labels.mean()), 4),
                "accuracy": accuracy.to_json(),
                "auc": auc_interval(scores, labels).to_json(),
                "scores": [round(float(score), 4) for score in scores],
                "labels": labels.tolist(),
                "seconds": round(time.monotonic() - began),
            },
        )
        bench.say(f"{piece.file}: accuracy {accuracy.success:.3f}; {time.monotonic() - began:.0f} s")

    def _reader(self, reading: str) -> tuple[Reader, dict[str, Any] | None]:
        """Return what reads, and the attacked point of its noise."""
        bench = self.bench
        if reading == SHIPPED_CODES:
            return CodesReader.shipped(bench.bundle, bench.coded_name), bench.coded(bench.plan.epsilons[0])
        noisy = {
            CODES_20: Piece(CODES, reading, CODES, _LEVEL, bench.plan.codes[_LEVEL]),
            COUNTS_20: Piece(COUNTS, PUBLISHED, COUNTS, _LEVEL),
        }
        if reading not in noisy:
            return ClearReader(self.lm), None
        point = bench.noise_of(noisy[reading])
        return bench.reader(noisy[reading], point), point

    def _fit(
        self,
        piece: TaskPiece,
        task: Task,
        reader: Reader,
        rows: nn.Parameter,
        layers: AttachedAdapter,
        steps: tuple[int, int],
    ) -> float:
        """Train rows, reader and adapter for batches ``steps[0]`` to ``steps[1]``."""
        plan, (begin, end) = self.plan, steps
        train = [self._encode(piece, example) for example in task.train]
        held_out = [self._encode(piece, example) for example in self._evenly(task.validation, plan.validation_examples)]
        lengths = np.array([len(one) for one in train])

        def loss_of(chosen: Sequence[_Encoded], generator: torch.Generator) -> torch.Tensor:
            odds = self._log_odds(task, chosen, reader, rows, generator)
            labels = torch.tensor([float(one.label) for one in chosen])
            return nn.functional.binary_cross_entropy_with_logits(odds, labels, reduction="none")

        def loss(step: int) -> torch.Tensor:
            picks = batches(lengths, plan.batch, plan.seed, begin + step)
            return loss_of([train[pick] for pick in picks], step_generator(plan.seed, begin + step)).mean()

        @torch.no_grad()
        def judged() -> float:
            parts = (held_out[first : first + plan.batch] for first in range(0, len(held_out), plan.batch))
            losses = [loss_of(part, step_generator(plan.seed + 1, index)) for index, part in enumerate(parts)]
            return float(torch.cat(losses).mean())

        parameters = {"soft_prompt": rows, **dict(reader.parameters()), **layers.parameters()}
        rates = dict.fromkeys(dict(reader.parameters()), plan.decoder_learning_rate / plan.learning_rate)
        rates |= dict.fromkeys(layers.parameters(), plan.adapter_learning_rate / plan.learning_rate)
        count = end - begin
        identity = {**asdict(plan), "piece": piece.file, "model": self.lm.checksum}
        run = Run(
            piece.file,
            self.bench.work / "tasks",
            Schedule(count, plan.learning_rate, warmup=count // 5),
            identity=identity,
            evaluate_every=max(1, count // 2),
            checkpoint_every=max(1, count // 4),
            keep_start=True,
            rates=rates,
            progress=False,
        )
        return fit(parameters.items(), loss, run, judged)

    def _encode(self, piece: TaskPiece, example: Example) -> _Encoded:
        """Return the tokens of an example; one that says nothing for what the control reads."""
        ids: list[int] = []
        private: list[bool] = []
        for segment in example.segments:
            if segment.private and piece.reading == NOTHING:
                own, hidden = [end_token(self.lm)], False
            else:
                own, hidden = self._ids(segment.text), segment.private
                own = own[: self.plan.most_tokens] if hidden else own
            ids, private = ids + own, private + [hidden] * len(own)
        return _Encoded(torch.tensor(ids), torch.tensor(private), example.label)

    def _ids(self, text: str) -> list[int]:
        return list(self.bench.tokenizer.encode(text, add_special_tokens=False).ids)

    def _log_odds(
        self,
        task: Task,
        chosen: Sequence[_Encoded],
        reader: Reader,
        rows: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the log odds of label 1 (examples,): the LM's, between the two verbalizers."""
        longest, lm = max(map(len, chosen)), self.lm
        tokens = torch.zeros(len(chosen), longest, dtype=torch.int64)
        private, targets = torch.zeros_like(tokens, dtype=torch.bool), torch.full_like(tokens, IGNORED)
        for row, one in enumerate(chosen):
            tokens[row, : len(one)], private[row, : len(one)] = one.ids, one.private
            targets[row, len(one) - 1] = 0
        read = reader.read(reader.release(tokens, generator))
        inputs = torch.where(private[..., None], read, lm.embeddings[tokens])
        head = [] if lm.bos_token_id is None else [lm.bos_token_id]
        front = torch.cat([rows, lm.embeddings[torch.tensor(head, dtype=torch.int64)]])
        logits = judged_logits(lm.model, inputs, targets, front)
        last = torch.tensor([len(one) for one in chosen]) - 1 - (longest - logits.shape[1])
        no, yes = (self._ids(word)[0] for word in task.verbalizers)
        final = logits[torch.arange(len(chosen)), last]
        return final[:, yes] - final[:, no]

    @torch.no_grad()
    def _scores(
        self, piece: TaskPiece, task: Task, examples: Sequence[Example], reader: Reader, rows: torch.Tensor
    ) -> FloatArray:
        """Return log odds of ``examples``, which are read in order of their length."""
        encoded = [self._encode(piece, example) for example in examples]
        order, found = np.argsort([len(one) for one in encoded], kind="stable"), np.zeros(len(encoded))
        for first in range(0, len(order), 16):
            here = order[first : first + 16]
            generator = step_generator(NOISE_SEED, first)
            found[here] = self._log_odds(task, [encoded[i] for i in here], reader, rows, generator).double().numpy()
        return found

    @staticmethod
    def _evenly(examples: Sequence[Example], count: int) -> list[Example]:
        picks = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(np.int64)
        return [examples[pick] for pick in picks]


def task_results(out: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """Return one row for each finished piece in ``out``, and what is missing."""
    paths = {piece: out / f"{piece.file}.json" for piece in task_pieces(tasks)}
    found = {piece: json.loads(path.read_text("utf-8")) for piece, path in paths.items() if path.exists()}
    return {
        "about": {
            "date": max((one["date"] for one in found.values()), default=None),
            "command": "python -m benchmarks.privacy_utility.pretrained tasks --data DIR --work DIR --out DIR",
            "model": "SmolLM2-135M-Instruct",
            "machine": "; ".join(sorted({one["machine"] for one in found.values()})),
            "settings": next((one["settings"] for one in found.values()), None),
            "pieces_done": len(found),
            "pieces_missing": [piece.file for piece in paths if piece not in found],
        },
        "rows": [_row(one) for one in found.values()],
    }


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    noise = one["noise"] or {}
    rate = noise.get("strongest")
    return {
        "task": one["task"],
        "reading": one["reading"],
        "steps": one["training"]["steps"],
        "codes": noise.get("codes"),
        "epsilon": noise.get("epsilon"),
        "delta": noise.get("delta"),
        "attack": noise.get("attack"),
        "strongest": rate and [rate[key] for key in ("success", "low", "high")],
        "majority": one["majority"],
        "accuracy": [one["accuracy"][key] for key in ("success", "low", "high")],
        "auc": one["auc"],
        "examples": one["accuracy"]["tokens"],
    }
