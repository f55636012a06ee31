"""A batch job: a private completion for every line of a file, several at once, resumable.

    python examples/batch/run.py --server http://127.0.0.1:8000 --input letters.jsonl \\
        --output answers.jsonl --ledger users.db --budget-epsilon 20000

An input line is {"id": "...", "subject": "...", "text": "..."}. Each result is written at once, as
a line {"id": "...", "completion": "..."}. The ledger records the spending of each subject; a text
whose subject has no budget left is skipped, and tried again by a later run. After a crash or Ctrl-C
run the job again: completed lines are not sent again. The at most --at-once texts in flight at that
moment are sent again, with fresh noise that is charged again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from client_lib import AsyncClient, BudgetExceededError, DELClientError, InvalidRequestError, private, public
from client_lib.ledger import Budget, Ledger, SQLiteStore


@dataclass(frozen=True)
class Item:
    """A line of the input."""

    id: str
    subject: str
    text: str


def read_items(path: Path) -> Iterator[Item]:
    """Yield the lines of the input."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                fields = json.loads(line)
                yield Item(fields["id"], fields["subject"], fields["text"])


def finished_ids(path: Path) -> set[str]:
    """The ids that the output holds; what a crash left of a last line is cut off."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as output:
            output.truncate(len(whole))
    return {json.loads(line)["id"] for line in whole.splitlines()}


async def run(client: AsyncClient, items: list[Item], output: TextIO, *, variant: str, at_once: int) -> bool:
    """Complete all items; returns whether all of them could be."""
    waiting = iter(items)
    left, failures = 0, []

    async def work() -> None:
        nonlocal left
        for item in waiting:  # shared by all workers: each takes the next that is left
            prompt = [public("Letter:"), private(f" {item.text}"), public("\nSummary:")]
            try:
                subject = client.with_options(subject=item.subject)
                completion = await subject.complete(prompt, variant=variant, max_tokens=48, temperature=0)
            except (
                InvalidRequestError,
                BudgetExceededError,
            ) as error:  # this one cannot go through now; the others may
                print(f"{item.id}: {error}", file=sys.stderr)
                left += 1
            except DELClientError as error:
                failures.append(error)
            else:
                output.write(json.dumps({"id": item.id, "completion": completion.text}) + "\n")
                output.flush()
            # What is in flight elsewhere may end: its noise has been spent.
            if failures:
                return

    async with asyncio.TaskGroup() as workers:
        for _ in range(at_once):
            workers.create_task(work())
    if failures:
        print(f"stopped: {failures[0]}; run it again to go on", file=sys.stderr)
    return not failures and not left


async def main() -> int:
    """The job; 0 if every line of the input has its line in the output."""
    parser = argparse.ArgumentParser(description="Private completions for the lines of a file.")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--variant", default="balanced")
    parser.add_argument("--at-once", type=int, default=4, help="requests in flight")
    parser.add_argument("--ledger", type=Path, required=True, help="what was spent on whom")
    parser.add_argument("--budget-epsilon", type=float, required=True, help="for every subject, in 30 days")
    options = parser.parse_args()

    done = finished_ids(options.output)
    items = [item for item in read_items(options.input) if item.id not in done]
    print(f"{len(done)} done before, {len(items)} to do", file=sys.stderr)
    ledger = Ledger(SQLiteStore(options.ledger), budget=Budget(options.budget_epsilon, window=timedelta(days=30)))
    # Patient with a busy server: nobody is waiting.
    async with AsyncClient(options.server, ledger=ledger, max_retries=30) as client:
        with options.output.open("a", encoding="utf-8") as output:
            complete = await run(client, items, output, variant=options.variant, at_once=options.at_once)
    ledger.close()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
