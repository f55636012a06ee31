"""Accuracy and AUC of a task under a view: the label that the frozen model predicts as next word.

A soft prompt is trained for the task through the view, with fresh noise in every step, as a server
trains one for a task that it offers. The clear prompt gets a soft prompt with the same budget, so
the comparison is one of views. Rows are peft's prompt tuning (Lester et al., 2021, arXiv
2104.08691): (rows, b), in front of everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from tokenizers import Tokenizer
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.privacy_utility.tasks import Example, Task
from benchmarks.privacy_utility.views import MethodView
from del_core.audit.intervals import Rate
from del_core.evaluation.bootstrap import Interval
from del_core.evaluation.view import in_front
from del_core.lm.model import BaseLM
from del_core.lm.noise import step_generator
from del_core.training.loop import Run, Schedule, fit

__all__ = ["Reader", "TaskConfig", "TaskScores", "auc", "auc_interval", "batches", "correct", "train_task"]

FloatArray = npt.NDArray[np.float64]
_POOL = 8  # batches drawn together and divided by length, which saves padding


@dataclass(frozen=True)
class TaskConfig:
    """Sizes and schedule. Private segments are truncated to ``most_tokens`` tokens."""

    rows: int = 32
    most_tokens: int = 64
    batch: int = 16
    steps: int = 200
    learning_rate: float = 3e-3
    evaluate_every: int = 25
    patience: int = 3
    validation_examples: int = 256
    test_examples: int | None = None
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.most_tokens < 1 or self.batch < 1:
            raise ValueError(
                f"rows, most_tokens and batch must be at least 1, got {self.rows}, {self.most_tokens}, {self.batch}"
            )


@dataclass(frozen=True, eq=False)
class TaskScores:
    """Scores of the test part.

    Attributes:
        soft_prompt: trained rows (rows, b).
        scores: log odds of label 1 (examples,).
        labels: labels (examples,), 0 or 1.
    """

    soft_prompt: torch.Tensor
    scores: FloatArray
    labels: npt.NDArray[np.int64]

    @property
    def correct(self) -> FloatArray:
        """1 where the more likely label is right, else 0; for paired intervals between views."""
        return correct(self.scores, self.labels)

    @property
    def accuracy(self) -> Rate:
        """Share of right labels, with its interval."""
        return Rate(int(self.correct.sum()), len(self.labels))

    @property
    def auc(self) -> Interval:
        """Area under the receiver operating characteristic, with its interval."""
        return auc_interval(self.scores, self.labels)


def correct(scores: FloatArray, labels: npt.NDArray[np.int64]) -> FloatArray:
    """Return 1 for every example whose log odds (examples,) favor its label, else 0."""
    return ((scores > 0) == (labels == 1)).astype(np.float64)


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the probability that label 1 scores above label 0; ties count half (Mann-Whitney).

    Raises:
        ValueError: a label does not occur.
    """
    positive = np.asarray(labels) == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        raise ValueError(f"labels must hold both labels, got {zeros} of label 0 and {ones} of label 1")
    ranks = rankdata(np.asarray(scores))
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def auc_interval(scores: FloatArray, labels: npt.NDArray[np.int64], resamples: int = 500, seed: int = 0) -> Interval:
    """Return the bootstrap interval; labels are resampled separately and keep their numbers."""
    rng, groups = np.random.default_rng(seed), [np.flatnonzero(labels == label) for label in (0, 1)]
    drawn = []
    for _ in range(resamples):
        picks = np.concatenate([rng.choice(group, len(group)) for group in groups])
        drawn.append(auc(scores[picks], labels[picks]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(auc(scores, labels), float(low), float(high))


class Reader:
    """Reader of examples through a view; it computes log odds of label 1."""

    def __init__(self, lm: BaseLM, tokenizer: Tokenizer, view: MethodView, task: Task, config: TaskConfig) -> None:
        self.lm = view.local_model or lm
        self.model, self.tokenizer, self.view, self.config = self.lm.model, tokenizer, view, config
        self.table = self.lm.embeddings
        first = [self._ids(word, 1) for word in task.verbalizers]
        if first[0] == first[1] or not all(first):
            raise ValueError(f"verbalizers must begin with different tokens, got {task.verbalizers}")
        self.device = self.table.device
        self.verbalizers = torch.tensor([ids[0] for ids in first], device=self.device)

    def _ids(self, text: str, most: int) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids[:most])

    def encode(self, examples: Sequence[Example]) -> list[list[torch.Tensor]]:
        """Return the token ids of every segment of every example."""
        most = self.config.most_tokens
        return [
            [
                torch.tensor(self._ids(s.text, most if s.private else len(s.text)) or [0], device=self.device)
                for s in example.segments
            ]
            for example in examples
        ]

    def _inputs(
        self, examples: Sequence[Example], encoded: Sequence[list[torch.Tensor]], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings (N, longest, b), padded at the end, and positions of last tokens."""
        columns: list[list[torch.Tensor]] = []
        for place, segment in enumerate(examples[0].segments):
            ids = [parts[place] for parts in encoded]
            if not segment.private:
                columns.append([self.table[row] for row in ids])
                continue
            padded = pad_sequence(ids, batch_first=True)
            observed = self.view.embed(padded, generator).to(self.table.dtype)
            # With one row per token, rows of the padding are cut off; other views return a whole
            # text.
            by_token = observed.shape[1] == padded.shape[1]
            columns.append([row[: len(own)] if by_token else row for row, own in zip(observed, ids, strict=True)])
        rows = [torch.cat(parts) for parts in zip(*columns, strict=True)]
        last = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        inputs = self.lm.begin(pad_sequence(rows, batch_first=True))
        return inputs, last + (self.lm.bos_token_id is not None)

    def log_odds(
        self,
        soft_prompt: torch.Tensor,
        examples: Sequence[Example],
        encoded: Sequence[list[torch.Tensor]],
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Return the log odds (N,) of label 1. Padding follows the last token and has no effect."""
        with torch.no_grad():
            inputs, last = self._inputs(examples, encoded, generator)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.config.bf16):
            hidden = self.model.get_decoder()(inputs_embeds=in_front(soft_prompt, inputs), use_cache=False)[0]
        final = hidden[torch.arange(len(last), device=self.device), last + len(soft_prompt)].float()
        logits = self.model.get_output_embeddings()(final)[:, self.verbalizers]
        return logits[:, 1] - logits[:, 0]


def batches(lengths: npt.NDArray[np.int64], batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    """Return the indices of batch ``step``, examples of similar length; depends on the seed."""
    pools = max(1, len(lengths) // (batch * _POOL))
    epoch, place = divmod(step, pools * _POOL)
    rng = np.random.default_rng([seed, epoch])
    order, turns = rng.permutation(len(lengths)), rng.permutation(pools * _POOL)
    pool, part = divmod(int(turns[place]), _POOL)
    members = order[pool * batch * _POOL : (pool + 1) * batch * _POOL]
    members = members[np.argsort(lengths[members], kind="stable")]
    return members[part * batch : (part + 1) * batch] if len(members) > part * batch else members[:batch]


def train_task(
    lm: BaseLM,
    tokenizer: Tokenizer,
    view: MethodView,
    task: Task,
    output: Path,
    config: TaskConfig | None = None,
    *,
    start: torch.Tensor | None = None,
    progress: bool = True,
) -> TaskScores:
    """Train the task's soft prompt through ``view`` and score the test part.

    Args:
        view: view without a soft prompt of its own.
        output: directory of checkpoints, from which an interrupted run resumes, and of losses.
        start: initial rows; by default embeddings of training examples with their answers.

    Raises:
        ValueError: the verbalizers begin with the same token, or a label has no training example.
        CheckpointError: ``output`` has a checkpoint of another run.
    """
    config = config or TaskConfig()
    reader = Reader(lm, tokenizer, view, task, config)
    rows = nn.Parameter(_start(reader, task, config.rows) if start is None else start.detach().clone().float())
    train = reader.encode(task.train)
    lengths = np.array([sum(map(len, parts)) for parts in train])

    def loss_of(examples: Sequence[Example], odds: torch.Tensor) -> torch.Tensor:
        labels = torch.tensor([float(example.label) for example in examples], device=odds.device)
        return nn.functional.binary_cross_entropy_with_logits(odds, labels)

    def loss(step: int) -> torch.Tensor:
        picks = batches(lengths, config.batch, config.seed, step)
        examples = [task.train[i] for i in picks]
        generator = step_generator(config.seed, step, reader.device)
        odds = reader.log_odds(rows, examples, [train[i] for i in picks], generator)
        return loss_of(examples, odds)

    @torch.no_grad()
    def odds_of(examples: Sequence[Example], seed: int) -> torch.Tensor:
        encoded = reader.encode(examples)
        order = np.argsort([sum(map(len, parts)) for parts in encoded], kind="stable")
        odds = torch.empty(len(examples), device=reader.device)
        for first in range(0, len(order), 32):
            here = order[first : first + 32]
            generator = step_generator(seed, first, reader.device)
            picked = [examples[i] for i in here], [encoded[i] for i in here]
            odds[torch.from_numpy(here).to(reader.device)] = reader.log_odds(rows, *picked, generator)
        return odds

    validation = task.validation[: config.validation_examples]
    identity = {key: value for key, value in asdict(config).items() if key not in ("steps", "test_examples")}
    fit(
        [("soft_prompt", rows)],
        loss,
        Run(
            "task",
            output,
            Schedule(config.steps, config.learning_rate),
            identity={**identity, "model": lm.checksum, "task": task.name, "view": view.name},
            evaluate_every=config.evaluate_every,
            patience=config.patience,
            progress=progress,
        ),
        lambda: float(loss_of(validation, odds_of(validation, config.seed + 1))),
    )
    test = task.test[: config.test_examples]
    scores = odds_of(test, config.seed + 2).double().cpu().numpy()
    return TaskScores(rows.detach().clone(), scores, np.array([example.label for example in test]))


def _start(reader: Reader, task: Task, rows: int) -> torch.Tensor:
    """Return embeddings of solved examples, with labels in turn."""
    pairs = zip(*([e for e in task.train if e.label == label] for label in (0, 1)), strict=False)
    ids: list[int] = []
    for example in (one for pair in pairs for one in pair):
        text = "".join(segment.text for segment in example.segments) + task.verbalizers[example.label] + " . "
        ids += reader.tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= rows:
            break
    if not ids:
        raise ValueError(f"task {task.name} must have training examples of both labels, got one label")
    return reader.table[torch.tensor((ids * rows)[:rows], device=reader.device)].detach().clone().float()
