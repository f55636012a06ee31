"""Tasks, the paper's tables, and attackers who train, on a pretrained model.

    python -m benchmarks.privacy_utility.pretrained tasks --data DIR --work DIR --out DIR
    python -m benchmarks.privacy_utility.pretrained paper --data DIR --work DIR --out DIR
    python -m benchmarks.privacy_utility.pretrained attackers --data DIR --work DIR --out DIR

All run in pieces beside those of ``python -m benchmarks.privacy_utility --model smollm2``, whose
directories they take: the attacked points in ``--out`` are reused. An interrupted run resumes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.privacy_utility.pretrained import command
from benchmarks.privacy_utility.pretrained.attackers import AttackerBench, attacked_pieces
from benchmarks.privacy_utility.pretrained.bench import PretrainedBench
from benchmarks.privacy_utility.pretrained.paper import PaperBench, PaperPlan
from benchmarks.privacy_utility.pretrained.paper_report import paper_results
from benchmarks.privacy_utility.pretrained.plan import COUNTS, Plan
from benchmarks.privacy_utility.pretrained.tasks import TaskBench, TaskPlan, task_results
from benchmarks.privacy_utility.tasks import read_mrpc, read_sentence_polarity
from benchmarks.support.progress import timed_lines
from del_core.lm.text import read_texts, tokenize

__all__ = ["main"]


def _tasks(data: Path, work: Path, out: Path, names: Sequence[str], bundle: Path | None) -> Iterator[dict[str, Any]]:
    """Run the pieces of the tasks; yield the results after each."""
    bench, nlu = command.bench(data, work, out, Plan(), timed_lines(), bundle), data / "nlu"
    tasks = (
        read_sentence_polarity(nlu / "sentence_polarity.train.tsv", nlu / "sentence_polarity.test.tsv"),
        read_mrpc(nlu / "mrpc.train.tsv", nlu / "mrpc.test.tsv"),
    )
    made = TaskBench(bench, tasks, TaskPlan(), out / "tasks")
    for piece in command.chosen(made.pieces, names):
        made.run(piece)
        yield task_results(made.out, tuple(made.tasks))


def _paper(data: Path, work: Path, out: Path, names: Sequence[str], bundle: Path | None) -> Iterator[dict[str, Any]]:
    """Run the pieces of the paper's tables; yield the results after each.

    Soft prompts are trained on WikiText-2's validation part, and on the first half of that of Penn
    Treebank, whose second half is read.
    """
    plan = PaperPlan()
    texts = plan.comparison(("in-domain", "wikitext-2", "ptb"))
    whole = command.bench(data, work, out, texts, timed_lines(), bundle)
    valid, ptb = read_texts([data / "eval" / "wikitext2.valid.txt", data / "eval" / "ptb.valid.txt"])
    half = ptb.rfind("\n", 0, len(ptb) // 2) + 1
    place = out / "paper"
    bench = PretrainedBench(
        whole.lm,
        whole.bundle,
        {**whole.texts, "ptb": ptb[half:]},
        whole.plan,
        out=place,
        work=work / "paper",
        machine=whole.machine,
        say=whole.say,
    )
    points = f"attack-{COUNTS}.json"
    if not (place / points).exists() and (whole.out / points).exists():
        shutil.copy(whole.out / points, place / points)
    trained = {"wikitext-2": command.plain_articles(valid), "ptb": ptb[:half]}
    made = PaperBench(bench, {name: tokenize(bench.tokenizer, [text]) for name, text in trained.items()}, plan)
    for piece in command.chosen(made.pieces, names):
        made.run(piece)
        yield paper_results(place, made.pieces, plan)


def _attackers(
    data: Path, work: Path, out: Path, names: Sequence[str], bundle: Path | None
) -> Iterator[dict[str, Any]]:
    """Attack the noises of the comparison with trained models; yield the results after each."""
    plan = Plan()
    made = AttackerBench(
        command.bench(data, work, out, plan, timed_lines(), bundle), command.training_texts(work), out / "attackers"
    )
    for piece in command.chosen(attacked_pieces(plan), names):
        made.run(piece)
        yield made.results()


_PARTS = {"tasks": _tasks, "paper": _paper, "attackers": _attackers}


@click.command()
@click.argument("part", type=click.Choice(list(_PARTS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folders eval, lm and nlu.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Checkpoints and prepared texts.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Results of the comparison.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True),
    help="Start from this bundle of the model, not from the one that ships.",
)
@click.option("--piece", "names", multiple=True, help="Compute this piece alone; may be repeated.")
def main(part: str, data: Path, work: Path, out: Path, bundle: Path | None, names: tuple[str, ...]) -> None:
    """Compute the missing pieces of PART in order, and write its results after each."""
    for found in _PARTS[part](data, work, out, names, bundle):
        (out / part / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
