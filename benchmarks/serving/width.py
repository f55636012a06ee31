"""What a request costs at the widths of real models: python -m benchmarks.serving --width

Models have the widths of real ones and one layer or two, so that the software around the model is
what differs between the systems:

    vllm_serve    vLLM's own OpenAI server, with prompts of token ids: the decoder ``ids``
    application   this application, with each decoder kind that ships and each of the comparison
    ray_llm       Ray Serve LLM with direct streaming, with prompts of token ids

Every other system runs beside vllm_serve, and gets the same prompts in alternating rounds of a
closed loop; a ratio is the median of the ratios of the rounds. ``cpu_s_per_request`` is by process,
the load generator's aside, and ``cpu_s`` is its sum. ``memory_mb`` is the peak of each process
since its start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import posterior_decoders
from benchmarks.serving.systems import Application, Generator, RayLlm, System, VllmServer, peak_memory_mb
from benchmarks.serving.wide import DECODER_KINDS, SOFT_ROWS, WIDTHS, make_wide
from benchmarks.support.load import Round
from benchmarks.support.plugins import installed
from deployments.settings import Settings, parse_settings

__all__ = [
    "REFERENCE",
    "WidthCell",
    "WidthPlan",
    "measure",
    "parse_cells",
    "plan_of",
    "show",
    "width_keys",
    "width_rows",
]

REFERENCE, IDS = "vllm_serve", "ids"
OTHERS = ("application", "ray_llm")
_OUTPUT_TOKENS = 2
_REQUESTS = 2
"""Requests of a round for each of the concurrent users."""
_LIMIT_S = 300.0
_BLOCK = 32


@dataclass(frozen=True)
class WidthCell:
    """A model and a load."""

    hidden: int
    layers: int
    prompt_tokens: int
    concurrency: int

    @property
    def name(self) -> str:
        """The name in the state file."""
        return f"width-{self.hidden}-{self.layers}-{self.prompt_tokens}-{self.concurrency}"


@dataclass(frozen=True)
class WidthPlan:
    """A measurement; ``kinds`` are decoder kinds."""

    cells: tuple[WidthCell, ...]
    others: tuple[str, ...]
    kinds: tuple[str, ...]
    rounds: int


Key = tuple[str, str, int]
"""Cell, ``system/decoder`` (the reference once for each system beside it), and round."""


def parse_cells(text: str) -> tuple[WidthCell, ...]:
    """Parse hidden:layers:prompt:concurrency, separated by commas."""
    cells = []
    for item in text.split(","):
        try:
            cell = WidthCell(*map(int, item.split(":")))
        except (TypeError, ValueError):
            cell = None
        if cell is None or cell.hidden not in WIDTHS or min(dataclasses.astuple(cell)) < 1:
            sizes = ", ".join(map(str, WIDTHS))
            raise click.BadParameter(
                f"{item!r}: hidden:layers:prompt:concurrency is allowed, with a hidden size of {sizes}"
            )
        cells.append(cell)
    return tuple(cells)


def default_cells(quick: bool) -> tuple[WidthCell, ...]:
    """Return the loads without ``--cells``. The widest model is the slowest: fewer loads of it."""
    if quick:
        return (WidthCell(576, 1, 32, 4), WidthCell(576, 1, 512, 1))
    prompts = [(32, 1), (32, 4), (32, 16), (512, 1), (512, 4), (2048, 1), (8000, 1)]
    cells = [WidthCell(576, layers, *load) for layers in (1, 2) for load in prompts]
    cells += [WidthCell(2048, layers, *load) for layers in (1, 2) for load in prompts[:-1]]
    cells += [WidthCell(4096, layers, *load) for layers in (1, 2) for load in ((32, 1), (32, 4), (512, 1))]
    return tuple(cells)


def measure(plan: WidthPlan, results: dict[Key, dict[str, Any]]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Run every round that is missing in ``results``, add it and yield it."""
    for model in dict.fromkeys((cell.hidden, cell.layers) for cell in plan.cells):
        cells = [cell for cell in plan.cells if (cell.hidden, cell.layers) == model]
        wanted = {
            other: [cell for cell in cells if any(key not in results for key in width_keys(plan, cell, other))]
            for other in plan.others
        }
        if not any(wanted.values()):
            continue
        with tempfile.TemporaryDirectory(prefix="del-width-") as temporary, contextlib.ExitStack() as stack:
            directory = Path(temporary)
            stack.enter_context(installed(posterior_decoders.__name__))
            settings = _settings(directory, *model, cells)
            reference = VllmServer(settings, directory / "vllm", name=REFERENCE)
            stack.callback(reference.stop)
            generator = Generator(settings, plan.kinds[0])
            stack.callback(generator.stop)
            reference.wait_started()
            generator.wait_started()
            for other in plan.others:
                if not wanted[other]:
                    continue
                with _running(other, settings, directory) as system:
                    yield from _rounds(plan, wanted[other], reference, system, generator, results)


def _settings(directory: Path, hidden: int, layers: int, cells: Sequence[WidthCell]) -> Settings:
    width = WIDTHS[hidden]
    longest = max(cell.prompt_tokens for cell in cells) + SOFT_ROWS + _BLOCK
    model, bundle = make_wide(directory, width, layers=layers, positions=longest)
    dtype = "bfloat16" if _has_bfloat16() else "float32"
    # A block more than needed for each request, for the two matrices of every layer.
    rows = max(cell.concurrency * (cell.prompt_tokens + SOFT_ROWS + 2 * _BLOCK) for cell in cells) + 64 * _BLOCK
    token = 2 * layers * width.kv_heads * (hidden // width.heads) * (2 if dtype == "bfloat16" else 4)
    engine = {"dtype": dtype, "kv_cache_memory_bytes": rows * token, "max_model_len": longest, "max_num_seqs": 16}
    return parse_settings({"bundle": str(bundle), "base_model": str(model), "engine": engine})


def _has_bfloat16() -> bool:
    """Return whether this machine multiplies matrices of bfloat16 faster than those of float32."""
    import torch

    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return torch.cuda.is_available() or "avx512_bf16" in flags or "amx_bf16" in flags


@contextlib.contextmanager
def _running(name: str, settings: Settings, directory: Path) -> Iterator[System]:
    makers: dict[str, Callable[[], System]] = {
        "application": lambda: Application(settings),
        "ray_llm": lambda: RayLlm(settings, directory / "ray_llm"),
    }
    system = makers[name]()
    try:
        system.wait_started()
        yield system
    finally:
        system.stop()


def _runs(plan: WidthPlan, other: str) -> list[tuple[str, str]]:
    """Return (system, decoder) of the measurements of a round."""
    kinds = plan.kinds if other == "application" else (IDS,)
    return [(REFERENCE, IDS), *((other, kind) for kind in kinds)]


def _series(other: str, system: str, kind: str) -> str:
    """Return the name of a series of rounds; the reference is measured beside each other system."""
    return f"{system}/{kind}/{other}"


def width_keys(plan: WidthPlan, cell: WidthCell, other: str) -> list[Key]:
    """Return the keys of the rounds of a cell beside another system."""
    runs = _runs(plan, other)
    return [(cell.name, _series(other, *run), number) for run in runs for number in range(plan.rounds)]


def _rounds(
    plan: WidthPlan,
    cells: Iterable[WidthCell],
    reference: System,
    other: System,
    generator: Generator,
    results: dict[Key, dict[str, Any]],
) -> Iterator[tuple[Key, dict[str, Any]]]:
    systems = {REFERENCE: reference, other.name: other}
    for cell in cells:
        for number in range(-1, plan.rounds):  # the first is a warm-up, and not kept
            runs = _runs(plan, other.name)
            for name, kind in reversed(runs) if number % 2 else runs:
                key = (cell.name, _series(other.name, name, kind), number)
                if key in results:
                    continue
                system, warming = systems[name], number < 0
                requests = 1 if warming else _REQUESTS
                figures = system.measure(
                    generator,
                    Round(
                        kind=system.kind,  # type: ignore[arg-type]
                        host=system.host,
                        port=system.port,
                        concurrency=1 if warming else cell.concurrency,
                        prompt_tokens=cell.prompt_tokens,
                        output_tokens=_OUTPUT_TOKENS,
                        seed=hash((*dataclasses.astuple(cell), OTHERS.index(other.name), number)) % 2**63,
                        seconds=_LIMIT_S,
                        max_requests=requests * (1 if warming else cell.concurrency),
                        variant=None if kind == IDS else kind,
                        limit_s=_LIMIT_S,
                    ),
                )
                figures["memory_mb"] = peak_memory_mb(system.processes())
                figures["load_average"] = os.getloadavg()[0]
                if not warming:
                    results[key] = figures
                    yield key, figures


def width_rows(plan: WidthPlan, results: dict[Key, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each cell, system and decoder whose rounds are all there."""
    rows = []
    for cell in plan.cells:
        for other in plan.others:
            if any(key not in results for key in width_keys(plan, cell, other)):
                continue
            beside = [results[cell.name, _series(other, REFERENCE, IDS), number] for number in range(plan.rounds)]
            for run in _runs(plan, other):
                mine = [results[cell.name, _series(other, *run), number] for number in range(plan.rounds)]
                rows.append(_row(cell, other, *run, mine, beside))
    return rows


def _row(
    cell: WidthCell, other: str, system: str, kind: str, mine: list[dict[str, Any]], beside: list[dict[str, Any]]
) -> dict[str, Any]:
    roles = sorted({role for figures in mine for role in figures["cpu_s"]} - {"generator"})
    cpu = {role: _median(f["cpu_s"].get(role, 0.0) / max(1, f["requests"]) for f in mine) for role in roles}
    first = [figures["ttft"].get("p50_ms") for figures in mine]
    reference = [figures["ttft"].get("p50_ms") for figures in beside]
    memory = [figures["memory_mb"] for figures in mine]
    return {
        "system": system,
        "beside": other,
        "hidden_size": cell.hidden,
        "vocabulary": WIDTHS[cell.hidden].vocabulary,
        "layers": cell.layers,
        "prompt_tokens": cell.prompt_tokens,
        "decoder": kind,
        "concurrency": cell.concurrency,
        "ttft_p50_ms": _median(first),
        "ttft_ratio_to_vllm_serve": _median(
            one / other for one, other in zip(first, reference, strict=True) if one and other
        ),
        "cpu_s_per_request": sum(value or 0.0 for value in cpu.values()),
        "cpu_s_by_process": cpu,
        "rps": _median(figures["rps"] for figures in mine),
        "memory_mb": {role: max(one.get(role, 0) for one in memory) for role in sorted(set().union(*memory))},
        "requests": sum(figures["requests"] for figures in mine),
        "failed": sum(figures["failed"] for figures in mine),
        "rounds": len(mine),
        "load_average": _median(figures["load_average"] for figures in mine),
    }


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return round(statistics.median(found), 4) if found else None


def show(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as a table."""
    heads = ("b", "V", "layers", "prompt", "at once")
    click.echo(
        "".join(f"{head:>9}" for head in heads) + f"  {'system':12}{'decoder':12}{'ttft50':>10}{'ratio':>8}  CPU s"
    )
    for row in rows:
        sizes = (row[name] for name in ("hidden_size", "vocabulary", "layers", "prompt_tokens", "concurrency"))
        line = "".join(f"{size:>9}" for size in sizes) + f"  {row['system']:12}{row['decoder']:12}"
        first, ratio = row["ttft_p50_ms"], row["ttft_ratio_to_vllm_serve"]
        line += f"{'' if first is None else round(first, 1):>10}{'' if ratio is None else round(ratio, 2):>8}"
        cpu = ", ".join(f"{role} {value:.3f}" for role, value in row["cpu_s_by_process"].items())
        click.echo(f"{line}  {cpu}" + (f"  FAILED {row['failed']}" if row["failed"] else ""))


def plan_of(*, quick: bool, cells: str | None, systems: Sequence[str], rounds: int | None) -> WidthPlan:
    """Return the plan of the command's options. Raises click.BadParameter."""
    others = tuple(name for name in systems if name != REFERENCE)
    if not others or not set(others) <= set(OTHERS):
        raise click.BadParameter(f"{', '.join(systems)}: {', '.join(OTHERS)} are allowed with --width")
    found = parse_cells(cells) if cells else default_cells(quick)
    return WidthPlan(found, others, DECODER_KINDS, rounds or (1 if quick else 3))
