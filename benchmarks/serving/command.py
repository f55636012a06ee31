"""The cost of a completion beside vLLM's server: python -m benchmarks.serving [--quick] [--json]

The benchmark runs the same prompts, interleaved, through

    engine        vLLM's engine alone, its frontend inside the load generator (the upper bound)
    vllm_serve    vLLM's own OpenAI server, with the same engine settings and prompts of token ids
                  of the same total length
    application   this application on a local cluster, as ``delctl serve`` starts it
    vllm_16       on request: vLLM's server with --stream-interval 16, which gathers tokens as the
                  application does

All systems share the machine with the load generator, so only ratios between neighbors in time
count: each figure is the median over rounds, each ratio the median of the ratios of the rounds. By
default the model is tiny and random, so that the figures are those of the software around the
model; ``--model demo`` takes the demo's model. ``--model smollm2`` takes SmolLM2, where the model's
own time counts, at two levels: one with an adapter and one without. vLLM's server and the engine
run without an adapter in both.

With ``--state FILE`` the benchmark records every round at once, and the same command continues
after an interruption. ``--out FILE`` holds the rows of the finished loads at any time;
``benchmarks.serving.table`` makes a table of them.

``--width`` measures models of real widths instead (``benchmarks.serving.width``).

``soft_prompt_hit_rate`` is the share of requests that found the whole soft prompt in the engine's
cache: for ``engine`` by the engine's report on each request, for ``application`` by its metrics.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.serving.systems import Application, Engine, Generator, System, VllmServer
from benchmarks.serving.width import WidthPlan, measure, plan_of, show, width_rows
from benchmarks.support.load import Round
from benchmarks.support.served import LEVELS, MODELS, ROOM, served
from deployments.settings import Settings

SYSTEMS = ("engine", "vllm_serve", "application", "vllm_16")
CONCURRENCY, PROMPTS, OUTPUTS = (1, 16, 64), (32, 256), (16, 128)
_OPEN_SHARE = 0.6
"""The rate of the open loop, as a share of the rate of vLLM's server in the closed loop at 16."""
_OPEN_LIMIT = 64
_ROUNDS = {"smollm2": ((3, 10.0), (2, 4.0))}
"""Rounds and their seconds, and both if the run is quick, of a model with others than the rest."""
_MOST_RPS = {"smollm2": 20.0}
"""Requests a second that no two cores exceed: as many prompts are made as this needs."""
_LATENCIES = ("ttft", "itl", "gap")


@dataclass(frozen=True)
class Cell:
    """One load; the rate of an ``open_loop`` follows from the closed loop at 16.

    ``variant`` is the level that the application is asked at, the model's own if None.
    """

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    open_loop: bool = False
    variant: str | None = None

    @property
    def name(self) -> str:
        """The name in the state file."""
        loop = "open" if self.open_loop else "closed"
        level = "" if self.variant is None else f"-{self.variant}"
        return f"{loop}-{self.concurrency}-{self.prompt_tokens}-{self.output_tokens}{level}"


Results = dict[tuple[str, str, int], dict[str, Any]]
"""Figures by (cell, system, round)."""

_RUN = "run"
"""In place of a cell's name: the figures of a whole run."""


@contextlib.contextmanager
def _running(names: Sequence[str], settings: Settings, variant: str, directory: Path) -> Iterator[dict[str, System]]:
    """Start the systems together and stop them at the end."""
    with contextlib.ExitStack() as stack:
        systems: dict[str, System] = {}
        makers = {
            "engine": lambda: Engine(settings, variant),
            "vllm_serve": lambda: VllmServer(settings, directory / "vllm", name="vllm_serve"),
            "vllm_16": lambda: VllmServer(
                settings, directory / "vllm16", name="vllm_16", arguments=("--stream-interval", "16")
            ),
            "application": lambda: Application(settings),
        }
        for name in sorted(names, key=list(makers).index):
            systems[name] = makers[name]()
            stack.callback(systems[name].stop)
        for system in systems.values():
            system.wait_started()
        yield {name: systems[name] for name in names}


def _measure(
    systems: dict[str, System],
    cells: list[Cell],
    rounds: int,
    seconds: float,
    most_rps: float,
    generator: Generator,
    results: Results,
) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
    """Run every round that is missing in ``results``, in order, and add it."""
    for cell in cells:
        rate = _open_rate(cell, results) if cell.open_loop else None
        # More than small machines need, made in a second or two. If they run out, the round is
        # shorter.
        rate_limit = min(most_rps, 400 * cell.concurrency, 12_800 / cell.output_tokens, 64_000 / cell.prompt_tokens)
        most = 64 + int(seconds * rate_limit)
        for number in range(-1, rounds):  # the first is a warm-up, and not kept
            order = list(systems)
            if number % 2:
                order.reverse()
            missing = [name for name in order if (cell.name, name, number) not in results]
            for name in missing if number >= 0 or any((cell.name, n, 0) not in results for n in order) else []:
                system = systems[name]
                plan = Round(
                    kind=system.kind,  # type: ignore[arg-type]
                    host=system.host,
                    port=system.port,
                    concurrency=cell.concurrency,
                    prompt_tokens=cell.prompt_tokens,
                    output_tokens=cell.output_tokens,
                    seed=zlib.crc32(f"{cell.name} {number}".encode()),
                    seconds=seconds if number >= 0 else min(seconds, 0.3),
                    max_requests=most if number >= 0 else 64 + int(most * 0.3),
                    rate=rate,
                    variant=cell.variant if system.kind == "application" else None,
                )
                figures = system.measure(generator, plan)
                if number >= 0:
                    figures["load_average"] = os.getloadavg()[0]
                    results[cell.name, name, number] = figures
                    yield (cell.name, name, number), figures


def _open_rate(cell: Cell, results: Results) -> float:
    closed = replace(cell, concurrency=16, open_loop=False).name
    measured = [figures for key, figures in results.items() if key[0] == closed]
    reference = [figures for key, figures in results.items() if key[:2] == (closed, "vllm_serve")]
    return _OPEN_SHARE * statistics.median(figures["rps"] for figures in reference or measured)


def _rows(cells: list[Cell], systems: Sequence[str], rounds: int, results: Results) -> list[dict[str, Any]]:
    """Make one row for each system and load."""
    rows = []
    for cell, name in product(cells, systems):
        mine = [results[cell.name, name, number] for number in range(rounds)]
        row: dict[str, Any] = {
            "system": name,
            "loop": "open" if cell.open_loop else "closed",
            "concurrency": cell.concurrency,
            "prompt_tokens": cell.prompt_tokens,
            "output_tokens": cell.output_tokens,
            **({} if cell.variant is None else {"variant": cell.variant}),
            "rps": _median(figures["rps"] for figures in mine),
            "output_tokens_per_s": _median(figures["tokens_per_s"] for figures in mine),
        }
        seen = mine if name == "engine" else [one for key, one in results.items() if key[:2] == (_RUN, name)]
        row["soft_prompt_hit_rate"] = _hit_rate(one.get("soft_prompts", {}) for one in seen)
        for latency, q in product(_LATENCIES, ("p50_ms", "p95_ms", "p99_ms")):
            row[f"{latency}_{q}"] = _median(figures[latency].get(q) for figures in mine)
        roles = sorted({role for figures in mine for role in figures["cpu_s"]})
        row["cpu_ms_per_request"] = {
            role: _median(1e3 * figures["cpu_s"].get(role, 0.0) / max(1, figures["requests"]) for figures in mine)
            for role in roles
        }
        reference = [results.get((cell.name, "vllm_serve", number)) for number in range(rounds)]
        pairs = [(one, other) for one, other in zip(mine, reference, strict=True) if other is not None]
        row["ratio_to_vllm_serve"] = _median(one["rps"] / other["rps"] for one, other in pairs if other["rps"])
        row["ttft_ratio_to_vllm_serve"] = _median(
            one["ttft"]["p50_ms"] / other["ttft"]["p50_ms"] for one, other in pairs if one["ttft"] and other["ttft"]
        )
        row["requests"] = sum(figures["requests"] for figures in mine)
        row["failed"] = sum(figures["failed"] for figures in mine)
        row["rounds"] = rounds
        row["load_average"] = _median(figures["load_average"] for figures in mine)
        rows.append(row)
    return rows


def _hit_rate(counts: Iterable[dict[str, int]]) -> float | None:
    found = list(counts)
    hits, misses = (sum(one.get(kind, 0) for one in found) for kind in ("hit", "miss"))
    return round(hits / (hits + misses), 6) if hits + misses else None


def _median(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return round(statistics.median(found), 4) if found else None


def _print(rows: list[dict[str, Any]]) -> None:
    heads = ("req/s", "tok/s", "ttft50", "95", "99", "itl50", "95", "99", "gap50", "95", "99", "ratio", "ttft")
    width = 38 if any("variant" in row for row in rows) else 22
    click.echo(f"{'load':{width}}{'system':13}" + "".join(f"{head:>8}" for head in heads) + "  CPU ms a request")
    for row in rows:
        load = f"{row['loop']} {row['concurrency']}, {row['prompt_tokens']} -> {row['output_tokens']}"
        load += f" {row['variant']}" if "variant" in row else ""
        numbers = [row["rps"], row["output_tokens_per_s"]]
        numbers += [row[f"{latency}_{q}"] for latency, q in product(_LATENCIES, ("p50_ms", "p95_ms", "p99_ms"))]
        ratios = [row["ratio_to_vllm_serve"], row["ttft_ratio_to_vllm_serve"]]
        line = "".join(f"{'' if number is None else round(number, 1):>8}" for number in numbers)
        line += "".join(f"{'' if ratio is None else round(ratio, 2):>8}" for ratio in ratios)
        cpu = ", ".join(f"{role} {value:.2f}" for role, value in row["cpu_ms_per_request"].items())
        click.echo(
            f"{load:{width}}{row['system']:13}{line}  {cpu}" + (f"  FAILED {row['failed']}" if row["failed"] else "")
        )
    for name in dict.fromkeys(row["system"] for row in rows):
        rates = [row["soft_prompt_hit_rate"] for row in rows if row["system"] == name]
        if None not in rates:
            click.echo(f"{name}: {min(rates):.2%} of requests or more found the soft prompt in the engine's cache")
    click.echo(
        "Times in ms: to the first token; a token after the first, of one request; pauses between events. Ratios to "
        "vllm_serve: req/s, and time to the first token (below 1 is faster)."
    )


def _cells(text: str) -> list[Cell]:
    cells = []
    for item in text.split(","):
        loop, _, rest = item.rpartition("@")
        try:
            concurrency, prompt_tokens, output_tokens = (int(part) for part in rest.split(":"))
        except ValueError:
            raise click.BadParameter(f"{item!r}: concurrency:prompt:output is allowed, as in 16:32:128") from None
        if loop not in ("", "open") or min(concurrency, prompt_tokens, output_tokens) < 1:
            raise click.BadParameter(f"{item!r}: positive numbers, and open@ in front for the open loop, are allowed")
        cells.append(Cell(concurrency, prompt_tokens, output_tokens, loop == "open"))
    return cells


def _default_cells(model: str, *, quick: bool) -> list[Cell]:
    if model == "smollm2":
        some = [(1, 32, 16), (4, 32, 16), (16, 32, 16), (4, 256, 16)]
        return [Cell(*sizes) for sizes in (some[:2] if quick else some)]
    if quick:
        some = [(1, 32, 16), (16, 32, 16), (64, 32, 16), (16, 256, 16), (16, 32, 128), (64, 256, 128)]
        return [*(Cell(*sizes) for sizes in some), Cell(_OPEN_LIMIT, 32, 16, True)]
    closed = [Cell(*sizes) for sizes in product(CONCURRENCY, PROMPTS, OUTPUTS)]
    return [*closed, Cell(_OPEN_LIMIT, 32, 16, True), Cell(_OPEN_LIMIT, 256, 128, True)]


def _read_state(path: Path | None) -> Results:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {tuple(line["key"]): line["figures"] for line in lines}


def _record(path: Path | None, key: tuple[str, str, int], figures: dict[str, Any]) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "figures": figures}) + "\n")


def _check_none_left() -> None:
    left = psutil.Process().children(recursive=True)
    if left:
        raise click.ClickException(f"{len(left)} processes were left running")


def _write_rows(out: Path | None, rows: list[dict[str, Any]]) -> None:
    if out is not None:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _report_width(plan: WidthPlan, state: Path | None, out: Path | None, *, as_json: bool) -> None:
    results = _read_state(state)
    for key, figures in measure(plan, results):
        _record(state, key, figures)
        click.echo(f"{key[0]} {key[1]} {figures['ttft'].get('p50_ms', 0.0):.1f} ms", err=True)
        _write_rows(out, width_rows(plan, results))
    _check_none_left()
    rows = width_rows(plan, results)
    _write_rows(out, rows)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        show(rows)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
@click.option("--quick", is_flag=True, help="Half of the loads and shorter rounds; under five minutes.")
@click.option(
    "--rounds", type=click.IntRange(1, 100), help="Rounds of every load.  [default: 5, quick: 2; smollm2: 3, quick: 2]"
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 60),
    help="Length of a round.  [default: 2.5, quick: 1; smollm2: 10, quick: 4]",
)
@click.option(
    "--cells",
    "cells_text",
    help="Loads instead of all: 16:32:128 (concurrency:prompt:output), open@...; "
    "with --width: 4096:1:512:4 (hidden size:layers:prompt:concurrency).",
)
@click.option(
    "--systems",
    help="Default: engine,vllm_serve,application; also vllm_16.  With --width: application,ray_llm.",
)
@click.option("--width", is_flag=True, help="Models of real widths, all decoder kinds, and Ray Serve LLM.")
@click.option("--model", type=click.Choice(MODELS), default="tiny", show_default=True)
@click.option("--state", type=click.Path(dir_okay=False, path_type=Path), help="File to go on from.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File for the rows, as JSON.")
def main(
    as_json: bool,
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    cells_text: str | None,
    systems: str | None,
    width: bool,
    model: str,
    state: Path | None,
    out: Path | None,
) -> None:
    """Compare the application with vLLM's own server and the engine alone."""
    if width:
        others = (systems or "application,ray_llm").split(",")
        plan = plan_of(quick=quick, cells=cells_text, systems=others, rounds=rounds)
        _report_width(plan, state, out, as_json=as_json)
        return
    names = (systems or "engine,vllm_serve,application").split(",")
    if not set(names) <= set(SYSTEMS):
        raise click.BadParameter(f"{systems}: {', '.join(SYSTEMS)} are allowed", param_hint="--systems")
    cells, levels = _cells(cells_text) if cells_text else _default_cells(model, quick=quick), LEVELS[model]
    if len(levels) > 1:
        cells = [replace(cell, variant=level) for cell in cells for level in levels]
    defaults = _ROUNDS.get(model, ((5, 2.5), (2, 1.0)))[quick]
    rounds, seconds = rounds or defaults[0], seconds or defaults[1]
    results = _read_state(state)

    def note(key: tuple[str, str, int], figures: dict[str, Any]) -> None:
        _record(state, key, figures)
        if out is not None:
            whole = [
                cell for cell in cells if all((cell.name, name, n) in results for name in names for n in range(rounds))
            ]
            _write_rows(out, _rows(whole, names, rounds, results))

    done = all((cell.name, name, number) in results for cell in cells for name in names for number in range(rounds))
    with tempfile.TemporaryDirectory(prefix="del-bench-") as temporary, contextlib.ExitStack() as stack:
        measured: Iterator[tuple[tuple[str, str, int], dict[str, Any]]] = iter(())
        if not done:
            settings = served(model, Path(temporary), scaling=ROOM)
            running = stack.enter_context(_running(names, settings, levels[0], Path(temporary)))
            generator = Generator(settings, levels[0])
            stack.callback(generator.stop)
            generator.wait_started()
            most_rps = _MOST_RPS.get(model, math.inf)
            measured = _measure(running, cells, rounds, seconds, most_rps, generator, results)
        answered = 0
        for key, figures in measured:
            note(key, figures)
            answered += figures["requests"] if key[1] == "application" else 0
            click.echo(f"{key[0]} {key[1]} {figures['rps']:.1f}/s", err=True)
        application = None if done else running.get("application")
        if isinstance(application, Application):
            run = sum(key[0] == _RUN for key in results)
            results[_RUN, "application", run] = {"soft_prompts": application.soft_prompts(answered)}
            note((_RUN, "application", run), results[_RUN, "application", run])
    _check_none_left()
    rows = _rows(cells, names, rounds, results)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        _print(rows)


if __name__ == "__main__":
    main()
