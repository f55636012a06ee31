"""A table of the rows of ``benchmarks.serving``: python -m benchmarks.serving.table [FILE]"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

__all__ = ["markdown"]

_SYSTEMS = ("engine", "vllm_serve", "application")
_HEADS = (
    "loop",
    "requests at once",
    "tokens in -> out",
    "requests a second: engine, vLLM's server, application",
    "ratio",
    "first token p50, ms: engine, vLLM's server, application",
    "ratio",
    "a token p50, ms: vLLM's server, application",
)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Make a line for each load; the ratios are those of the application to vLLM's server."""
    loads: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        load = (row["loop"], row["concurrency"], f"{row['prompt_tokens']} -> {row['output_tokens']}")
        load = (f"*{row['variant']}*", *load) if "variant" in row else load
        loads.setdefault(load, {})[row["system"]] = row

    def of(systems: dict[str, dict[str, Any]], column: str, names: tuple[str, ...] = _SYSTEMS) -> str:
        return ", ".join(_number(systems[name][column]) if name in systems else "-" for name in names)

    heads = ("level of the application", *_HEADS) if any("variant" in row for row in rows) else _HEADS
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for load, systems in loads.items():
        mine = systems.get("application", {})
        cells = [
            *(str(part) for part in load),
            of(systems, "rps"),
            _ratio(mine.get("ratio_to_vllm_serve")),
            of(systems, "ttft_p50_ms"),
            _ratio(mine.get("ttft_ratio_to_vllm_serve")),
            of(systems, "itl_p50_ms", _SYSTEMS[1:]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path), default="benchmarks/results/serving.json")
def main(file: Path) -> None:
    """Print the table of a run."""
    click.echo(markdown(json.loads(file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
