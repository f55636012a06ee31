"""Codes as token ids on vLLM's own server: python -m benchmarks.stock_path [--quick] [--json]

``delctl export`` writes a model whose vocabulary holds a variant's codes and soft prompt. vLLM's
own OpenAI server serves it unmodified, and another one serves the base model. For the same number
of prompt ids, in alternating rounds of a closed loop:

    base        token ids to the base model: the reference
    clear       token ids to the exported model without the variant's adapter
    ids         token ids to the exported model under the variant's name
    requests    private prompts, in the requests that the client makes, from bare connections
    openai      token ids to the base model from the library ``openai``: the reference of ``client``
    client      private prompts through ``client_lib.AsyncClient`` with ``upstream="openai"``

A library works on the same cores as the servers, so ``client`` is compared with ``openai``, and
all others with ``base``. A ratio is the median of the ratios of the rounds, with the quartiles;
below 1 is slower for requests, and faster for the time to the first token. ``cpu_ratio`` compares
the CPU time of the server's processes a request, which other work on the machine changes least.

Models:

    tiny              random weights and a variant without adapter: the software around the model
    smollm2           SmolLM2-135M-Instruct in bfloat16 and its variant ``open`` with its adapter
    smollm2-merged    the same with the adapter merged into the weights (``delctl export --merge``)
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.serving.systems import Generator, System, VllmServer
from benchmarks.support.load import Round
from benchmarks.support.served import served
from del_core.bundle import load_bundle
from del_core.lm.export import CLEAR, MODEL, Exported, export_model
from deployments.settings import Settings, parse_settings

__all__ = ["Case", "Load", "case_of", "measure", "rows_of"]

MODELS = ("tiny", "smollm2", "smollm2-merged")
BASE, EXPORTED = "base", "exported"
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Way:
    """How prompts reach a server, and the way that it is compared with."""

    name: str
    server: str
    kind: str
    reference: str


WAYS = (
    Way("base", BASE, "vllm", "base"),
    Way("clear", EXPORTED, "vllm", "base"),
    Way("ids", EXPORTED, "vllm", "base"),
    Way("requests", EXPORTED, "exported", "base"),
    Way("openai", BASE, "openai", "openai"),
    Way("client", EXPORTED, "client", "openai"),
)


@dataclass(frozen=True)
class Load:
    """A closed loop: requests at once, private tokens of a prompt, tokens of an answer."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Case:
    """A model with its export. ``settings`` name the bundle, the base model and the engine."""

    model: str
    variant: str
    settings: Settings
    exported: Exported

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways to measure: ``clear`` is that of ``ids`` if there is no adapter."""
        return tuple(way for way in WAYS if way.name != "clear" or self.exported.adapters)

    @property
    def exported_settings(self) -> Settings:
        """The settings with the exported model in place of the base model."""
        return self.settings.model_copy(update={"base_model": str(self.exported.directory / MODEL)})

    def served(self, way: Way) -> str | None:
        """Return the name in a request; None is the base model."""
        if way.server == BASE:
            return None
        return CLEAR if way.name == "clear" else self.variant


def case_of(model: str, directory: Path) -> Case:
    """Export a model into ``directory``. Raises BadParameter if SmolLM2 is not on the machine."""
    if model == "tiny":
        from tests.support.coded import make_coded
        from tests.support.tiny import make_tiny

        tiny = make_tiny(directory / "tiny")
        make_coded(tiny, directory / "coded")
        places = {"bundle": str(directory / "coded"), "base_model": str(tiny.model)}
        variant, settings = "plain", parse_settings(places)
    else:
        variant, settings = "open", served("smollm2", directory)
    merge = variant if model == "smollm2-merged" else None
    bundle, base_model = load_bundle(settings.bundle_path), settings.base_model_path
    exported = export_model(bundle, base_model, directory / "exported", merge=merge)
    kept = tuple(name for name in exported.adapters if name == variant)
    return Case(model, variant, settings, replace(exported, adapters=kept))


Results = dict[tuple[Load, str, int], dict[str, Any]]
"""Figures by load, way and round."""


def measure(
    case: Case, loads: Sequence[Load], rounds: int, seconds: float, note: Callable[[str], object] = str
) -> Results:
    """Serve both models and run all rounds; ``note`` gets a line for each."""
    results: Results = {}
    with _servers(case) as servers:
        generator = Generator(case.settings, case.variant)
        try:
            generator.wait_started()
            for load in loads:
                for number in range(-1, rounds):  # the first is a warm-up, and not kept
                    for way in _order(case.ways, number):
                        plan = _plan(case, servers[way.server], way, load, number, seconds)
                        figures = servers[way.server].measure(generator, plan)
                        if number >= 0:
                            results[load, way.name, number] = figures | {"load_average": os.getloadavg()[0]}
                            note(f"{case.model} {load.concurrency} {way.name} {figures['rps']:.2f}/s")
        finally:
            generator.stop()
    return results


@contextlib.contextmanager
def _servers(case: Case) -> Iterator[dict[str, System]]:
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="del-stock-")))
        arguments = tuple(case.exported.arguments[1:])
        servers: dict[str, System] = {}
        for name, settings, extra in ((BASE, case.settings, ()), (EXPORTED, case.exported_settings, arguments)):
            servers[name] = VllmServer(settings, place / name, name=name, arguments=extra)
            stack.callback(servers[name].stop)
        for server in servers.values():
            server.wait_started()
        yield servers


def _order(ways: Sequence[Way], number: int) -> list[Way]:
    """Return the ways in an order that changes from round to round: none is always first."""
    first = number % len(ways)
    turned = [*ways[first:], *ways[:first]]
    return turned[::-1] if number % 2 else turned


def _plan(case: Case, server: System, way: Way, load: Load, number: int, seconds: float) -> Round:
    warming = number < 0
    most = load.concurrency * (2 if warming else 4 + int(seconds * 400 / load.output_tokens))
    return Round(
        kind=way.kind,  # type: ignore[arg-type]
        host=server.host,
        port=server.port,
        concurrency=load.concurrency,
        prompt_tokens=load.prompt_tokens,
        output_tokens=load.output_tokens,
        # A way has prompts of its own: no server may find those of another way in its cache.
        seed=hash((load.concurrency, load.prompt_tokens, load.output_tokens, number, WAYS.index(way))) % 2**63,
        seconds=seconds,
        max_requests=most,
        variant=case.served(way),
        limit_s=_LIMIT_S,
    )


def rows_of(case: Case, loads: Sequence[Load], rounds: int, results: Results) -> list[dict[str, Any]]:
    """Return a row for each load and way."""
    rows = []
    for load in loads:
        for way in case.ways:
            mine = [results[load, way.name, number] for number in range(rounds)]
            others = [results[load, way.reference, number] for number in range(rounds)]
            roles = sorted({role for one in mine for role in one["cpu_s"]})
            rows.append(
                {
                    "model": case.model,
                    "way": way.name,
                    "reference": way.reference,
                    "concurrency": load.concurrency,
                    "prompt_ids": load.prompt_tokens + len(case.exported.variants[case.variant].soft_prompt),
                    "output_tokens": load.output_tokens,
                    "rps": round(statistics.median(one["rps"] for one in mine), 3),
                    "rps_ratio": _spread([one["rps"] / it["rps"] for one, it in zip(mine, others, strict=True)]),
                    "ttft_p50_ms": round(statistics.median(one["ttft"]["p50_ms"] for one in mine), 2),
                    "ttft_ratio": _spread(
                        [one["ttft"]["p50_ms"] / it["ttft"]["p50_ms"] for one, it in zip(mine, others, strict=True)]
                    ),
                    "cpu_ratio": _spread([_cpu(one) / _cpu(it) for one, it in zip(mine, others, strict=True)]),
                    "cpu_ms_per_request": {
                        role: round(
                            statistics.median(1e3 * one["cpu_s"].get(role, 0.0) / one["requests"] for one in mine), 3
                        )
                        for role in roles
                    },
                    "requests": sum(one["requests"] for one in mine),
                    "failed": sum(one["failed"] for one in mine),
                    "rounds": rounds,
                    "load_average": round(statistics.median(one["load_average"] for one in mine), 2),
                }
            )
    return rows


def _cpu(figures: dict[str, Any]) -> float:
    """Return the CPU seconds of a request, those of the load generator aside."""
    total: float = sum(seconds for role, seconds in figures["cpu_s"].items() if role != "generator")
    return total / figures["requests"]


def _spread(values: Sequence[float]) -> list[float]:
    """Return the median and the quartiles."""
    return [round(float(value), 3) for value in np.quantile(values, (0.5, 0.25, 0.75))]


def _show(row: dict[str, Any]) -> str:
    rate, first = ("{} ({} to {})".format(*row[name]) for name in ("rps_ratio", "ttft_ratio"))
    cpu = ", ".join(f"{role} {value}" for role, value in row["cpu_ms_per_request"].items())
    line = f"{row['model']:13}{row['concurrency']:>3} {row['way']:9}{row['rps']:>9}/s  {rate:26}"
    failed = f"  FAILED {row['failed']}" if row["failed"] else ""
    return f"{line}{row['ttft_p50_ms']:>9} ms  {first:26} CPU ms: {cpu}{failed}"


@click.command()
@click.option("--model", "models", type=click.Choice(MODELS), multiple=True, help="One or several.  [default: all]")
@click.option("--quick", is_flag=True, help="The tiny model, fewer and shorter rounds: under three minutes.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Rounds of every load.  [default: 7, quick: 3]")
@click.option("--seconds", type=click.FloatRange(0.1, 60), help="Length of a round.  [default: 2.5, quick: 1]")
@click.option("--concurrency", type=click.IntRange(1, 64), multiple=True, help="Requests at once.  [default: 1, 4, 16]")
@click.option("--prompt-tokens", type=click.IntRange(1, 256), default=96, show_default=True, help="Private tokens.")
@click.option("--output-tokens", type=click.IntRange(2, 128), default=16, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
def main(
    models: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    concurrency: tuple[int, ...],
    prompt_tokens: int,
    output_tokens: int,
    as_json: bool,
) -> None:
    """Compare private prompts as token ids with vLLM's own server on the base model."""
    loads = [Load(one, prompt_tokens, output_tokens) for one in concurrency or (1, 4, 16)]
    rounds, seconds = rounds or (3 if quick else 7), seconds or (1.0 if quick else 2.5)
    rows = []
    for model in models or (MODELS[:1] if quick else MODELS):
        with tempfile.TemporaryDirectory(prefix="del-stock-") as temporary:
            case = case_of(model, Path(temporary))
            results = measure(case, loads, rounds, seconds, lambda line: click.echo(line, err=True))
            found = rows_of(case, loads, rounds, results)
        rows += found
        for row in found:
            click.echo(_show(row), err=as_json)
    if as_json:
        click.echo(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
