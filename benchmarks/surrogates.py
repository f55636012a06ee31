"""How often an answer refers to the right person: python -m benchmarks.surrogates [--json]

Prompts are made from templates with a seed: people with names, e-mail addresses and phone numbers,
and a question or a task about one of them. In half of the templates another person has to be told
apart. ``delctl serve --bundle smollm2 --model smollm2`` answers, under greedy decoding, what the
library of the client sends:

    clear         the whole prompt, under the variant ``clear``
    counts        names, addresses and numbers private, the rest public
    surrogates    the same with placeholders (:mod:`client_lib.prompts.surrogates`), and the answer
                  restored
    alone         placeholders in place of the values, without counts, and the answer restored

The values are labelled: as for a detector that misses nothing. An answer is

    right         with the value that was asked for, and no other of the prompt's
    wrong         with another value of the prompt
    neither       with none

Large and small letters are the same. A value counts only if it stands there whole.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import click

from benchmarks.support.delctl import started
from client_lib import AsyncClient, Message, Timeout
from client_lib.prompts.detect import Finding
from client_lib.prompts.spans import CLEAR, Span, private, public
from client_lib.prompts.surrogates import Surrogates
from del_core.audit.intervals import Rate

__all__ = ["Asked", "Way", "judged", "made", "main", "spans_of"]

Way = Literal["clear", "counts", "surrogates", "alone"]
_RESULT = Path(__file__).parent / "results" / "surrogates.json"
_NAMES = (
    "Agnes", "Albert", "Bianca", "Boris", "Clara", "Conrad", "Daphne", "Dmitri", "Edith", "Emil", "Fiona", "Felix",
    "Greta", "Gustav", "Helga", "Hector", "Irene", "Ivan", "Judith", "Jonas", "Karin", "Klaus", "Lydia", "Leon",
    "Martha", "Milan", "Nadia", "Norbert", "Olga", "Oscar", "Paula", "Pedro", "Rita", "Rufus", "Sonja", "Simon",
)  # fmt: skip
_HOSTS = ("example.org", "example.net", "mail.example", "post.example")
# {a} and {b} are two people; .name, .mail and .phone their values. What is asked for comes last.
_TEMPLATES: tuple[tuple[str, str], ...] = (
    ("Repeat this sentence: Please write to {a.mail} before noon.", "a.mail"),
    ("Repeat this sentence: You can call me at {a.phone} tonight.", "a.phone"),
    ("Write one sentence that thanks {a.name} for the flowers.", "a.name"),
    ("My e-mail address is {a.mail}. Write one sentence that tells a friend my e-mail address.", "a.mail"),
    ("{a.name} has a dentist appointment. {b.name} has a job interview. Who has a job interview?", "b.name"),
    ("My sister is {a.name} and my neighbor is {b.name}. Write one sentence that greets my neighbor.", "b.name"),
    ("The address of the office is {a.mail}. The address of the school is {b.mail}. What is the address of the "
     "school?", "b.mail"),
    ("{a.name} can be called at {a.phone}. {b.name} can be called at {b.phone}. Which number belongs to {a.name}?",
     "a.phone"),
)  # fmt: skip
_FIELD = re.compile(r"\{([ab])\.(name|mail|phone)\}")
_KINDS: Mapping[str, str] = {"name": "name", "mail": "email", "phone": "phone"}
_MOST_TOKENS = 40
_CONFIG = """\
bundle: {bundle}
base_model: {model}
engine:
  max_model_len: 1024
  max_num_seqs: 16
scaling:
  max_replicas: 1
"""


@dataclass(frozen=True)
class Asked:
    """A prompt with the places of its values, what is asked for, and whose values are others."""

    template: int
    text: str
    values: tuple[Finding, ...]
    right: str
    others: tuple[str, ...]

    @property
    def people(self) -> int:
        """The number of people in the prompt."""
        return 2 if self.others else 1


def made(each: int, seed: int) -> list[Asked]:
    """Make ``each`` prompts of every template."""
    drawn = random.Random(seed)
    prompts = []
    for number, (template, right) in enumerate(_TEMPLATES):
        for _ in range(each):
            people = {letter: _person(drawn, name) for letter, name in zip("ab", drawn.sample(_NAMES, 2), strict=True)}
            text, end, values = "", 0, []
            for place in _FIELD.finditer(template):
                value = people[place[1]][place[2]]
                text += template[end : place.start()] + value
                values.append(Finding(len(text) - len(value), len(text), _KINDS[place[2]]))
                end = place.end()
            text += template[end:]
            wanted = people[right[0]][right[2:]]
            # A person who is named beside the number that was asked for is no mistake.
            others = tuple(
                text[one.start : one.end]
                for one in values
                if one.kind == _KINDS[right[2:]] and text[one.start : one.end] != wanted
            )
            prompts.append(Asked(number, text, tuple(values), wanted, others))
    return prompts


def _person(drawn: random.Random, name: str) -> dict[str, str]:
    mail = f"{name.lower()}{drawn.randint(1, 99)}@{drawn.choice(_HOSTS)}"
    return {"name": name, "mail": mail, "phone": f"555-{drawn.randint(100, 999)}-{drawn.randint(1000, 9999)}"}


def spans_of(asked: Asked, way: Way) -> tuple[tuple[Span, ...], Surrogates]:
    """Return what is sent of a prompt, and what restores the answer."""
    surrogates = Surrogates()
    marked = surrogates.marked(asked.text, asked.values)
    if way == "surrogates":
        return marked, surrogates
    if way == "alone":
        # The space before counts is the placeholder's.
        pairs = zip(marked, [*marked[1:], public("")], strict=False)
        texts = [one.text[:-1] if after.is_private else one.text for one, after in pairs if not one.is_private]
        return (public("".join(texts)),), surrogates
    if way == "clear":
        return (public(asked.text),), Surrogates()
    spans, end = [], 0
    for one in asked.values:
        spans += [public(asked.text[end : one.start]), private(asked.text[one.start : one.end])]
        end = one.end
    return tuple(span for span in (*spans, public(asked.text[end:])) if span.text), Surrogates()


def judged(asked: Asked, answer: str) -> str:
    """Return whether an answer is right, wrong or neither."""

    def has(value: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", answer, re.IGNORECASE) is not None

    if any(map(has, asked.others)):
        return "wrong"
    return "right" if has(asked.right) else "neither"


async def answers(url: str, prompts: Sequence[Asked], way: Way, level: str) -> list[str]:
    """Return the answers to the prompts, restored."""
    at_once = asyncio.Semaphore(16)
    with tempfile.TemporaryDirectory() as cache:
        async with AsyncClient(url, cache_dir=cache, timeout=Timeout(read=None, total=None)) as client:

            async def one(asked: Asked) -> str:
                spans, surrogates = spans_of(asked, way)
                async with at_once:
                    chat = [Message("user", spans)]
                    done = await client.complete(chat, variant=level, max_tokens=_MOST_TOKENS, temperature=0)
                return surrogates.restore(done.text)

            return await asyncio.gather(*map(one, prompts))


def _figures(prompts: Sequence[Asked], found: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for people in (1, 2):
        counted = Counter(
            judged(asked, answer) for asked, answer in zip(prompts, found, strict=True) if asked.people == people
        )
        rate = Rate(counted["right"], counted.total())
        right = [round(one, 4) for one in (rate.success, rate.low, rate.high)]
        made[str(people)] = {"prompts": counted.total(), "right": right, "wrong": counted["wrong"]}
    by_template = Counter(
        asked.template for asked, answer in zip(prompts, found, strict=True) if judged(asked, answer) == "right"
    )
    made["right_of_each_template"] = [by_template[number] for number in range(len(_TEMPLATES))]
    made["example"] = found[0]
    return made


@click.command(help=__doc__)
@click.option("--each", type=click.IntRange(1), default=12, show_default=True, help="Prompts of each template.")
@click.option("--seed", default=0, show_default=True, help="Of the people in the prompts.")
@click.option("--level", "levels", multiple=True, default=("open", "strict"), show_default=True, help="Repeatable.")
@click.option("--url", help="A server that runs already.")
@click.option("--json", "write", is_flag=True, help="Write benchmarks/results/surrogates.json, too.")
def main(each: int, seed: int, levels: tuple[str, ...], url: str | None, write: bool) -> None:
    """Print how often answers are right, and write it on request."""
    prompts = made(each, seed)
    runs: list[tuple[Way, str]] = [("clear", CLEAR)]
    runs += [(way, level) for level in levels for way in get_args(Way) if way != "clear"]
    results: dict[str, Any] = {}

    def run(at: str) -> None:
        for way, level in runs:
            found = asyncio.run(answers(at, prompts, way, level))
            results.setdefault(level, {})[way] = _figures(prompts, found)
            for people in ("1", "2"):
                row = results[level][way][people]
                share, low, high = row["right"]
                words = f"right {share:6.1%} ({low:.1%} to {high:.1%}), wrong {row['wrong'] / row['prompts']:6.1%}"
                click.echo(f"{level:12} {way:12} {people} of {row['prompts']:3}: {words}")

    if url is not None:
        run(url)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            config = Path(scratch) / "serve.yaml"
            config.write_text(_CONFIG.format(**_places()), "utf-8")
            with started(["serve", "--config", str(config), "--port", "0"], 600) as served:
                run(served)
    if write:
        about = {
            "command": "python -m benchmarks.surrogates --json",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": "SmolLM2 on CPUs; the figures depend on the noise that is drawn, not on the machine",
        }
        report = {"about": about, "seed": seed, "each": each, "templates": [one for one, _ in _TEMPLATES]}
        _RESULT.write_text(json.dumps({**report, "results": results}, indent=1) + "\n", "utf-8")


def _places() -> dict[str, str]:
    """Return the places of SmolLM2 and its bundle."""
    from del_core.demo import smollm2_bundle_path
    from del_core.lm.known import cached_model

    model = cached_model("smollm2")
    if model is None:
        raise click.ClickException("SmolLM2 is not on this machine yet; get it with: delctl model get smollm2")
    return {"bundle": str(smollm2_bundle_path()), "model": str(model)}


if __name__ == "__main__":
    main()
