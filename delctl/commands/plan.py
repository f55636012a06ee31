"""``delctl plan``: replicas, memory, network and cost for a load."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.capacity import ACCELERATORS, MODEL_SIZES
from delctl.options import POSITIVE, grouped, json_option
from delctl.terminal import console, plain_table, print_json

if TYPE_CHECKING:
    from cluster.capacity import Accelerator, ModelShape, Plan, Workload

_FACTORS = (0.5, 2.0)
_PLOTTED = tuple(2.0 ** (step / 8) for step in range(-16, 17))


@dataclass(frozen=True)
class LoadOptions:
    """The load as the options describe it."""

    users: float
    requests_per_user: float
    prompt_tokens: int
    output_tokens: int
    inter_token_ms: float
    utilization: float
    variants: int
    adapter_rank: int
    dim: int
    bits: int


_COUNT = click.IntRange(1)
_load_options = grouped(
    "load",
    LoadOptions,
    click.option("--users", type=POSITIVE, required=True, metavar="N", help="People who use it at the peak."),
    click.option(
        "--requests-per-user", type=POSITIVE, required=True, metavar="N", help="Requests of each in the peak hour."
    ),
    click.option("--prompt-tokens", type=_COUNT, default=512, show_default=True, help="Tokens of a prompt."),
    click.option("--output-tokens", type=_COUNT, default=256, show_default=True, help="Tokens of an answer."),
    click.option(
        "--inter-token-ms", type=POSITIVE, default=50.0, show_default=True, help="Longest mean time between two tokens."
    ),
    click.option(
        "--utilization",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.7,
        show_default=True,
        help="Share of its capacity that a replica is loaded with at the peak.",
    ),
    click.option("--variants", type=_COUNT, default=3, show_default=True, help="Variants of the bundle."),
    click.option("--adapter-rank", type=click.IntRange(0), default=0, show_default=True, help="LoRA of each variant."),
    click.option("--dim", type=_COUNT, default=128, show_default=True, help="Coordinates of a token."),
    click.option("--bits", type=click.IntRange(1, 8), default=4, show_default=True, help="Bits of a count."),
)


@click.command()
@click.option("--model-size", type=click.Choice(list(MODEL_SIZES)), help="A model of the size of a Llama.")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Or the directory of a model, of which config.json is read.",
)
@click.option("--gpu", type=click.Choice(list(ACCELERATORS)), required=True, help="The accelerator.")
@_load_options
@click.option("--price-per-hour", type=POSITIVE, metavar="USD", help="Of one GPU.  [default: a round figure]")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Draw how the GPUs depend on the load (PNG or SVG; needs matplotlib).",
)
@json_option
def plan(
    model_size: str | None,
    model: Path | None,
    gpu: str,
    load: LoadOptions,
    price_per_hour: float | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Estimate what a load needs: replicas, memory, network and cost.

    The result is an estimate from data sheets and a benchmark of this project. Measure a replica
    under your own load before you buy. docs/guides/capacity.md explains the arithmetic.
    """
    from cluster.capacity import Workload, plan, sensitivities

    shape = _shape(model_size, model)
    device = ACCELERATORS[gpu]
    if price_per_hour is not None:
        device = replace(device, price_per_hour=price_per_hour)
    workload = Workload(**asdict(load))
    found = plan(shape, device, workload)
    if plot is not None:
        _draw(plot, sensitivities(shape, device, workload, _PLOTTED), gpu)
    changed = sensitivities(shape, device, workload, _FACTORS)
    if as_json:
        print_json({**found.to_json(), "sensitivities": changed})
        return
    _show(found, shape, device, workload)
    out = console()
    out.print(f"\n{gpu.upper()}s, before rounding up, if one figure changes:")
    table = plain_table("figure", "half", "now", "double", right=("half", "now", "double"))
    now = f"{found.needed * found.devices:.1f}"
    for name, (half, double) in changed.items():
        table.add_row(name, _count(half), now, _count(double))
    out.print(table)


def _shape(size: str | None, directory: Path | None) -> ModelShape:
    from cluster.capacity import ModelShape

    if (size is None) == (directory is None):
        raise click.UsageError("one of --model-size and --model is needed")
    if size is not None:
        return MODEL_SIZES[size]
    assert directory is not None
    path = directory / "config.json"
    try:
        return ModelShape.of_config(directory.resolve().name, json.loads(path.read_bytes()))
    except OSError as error:
        raise click.BadParameter(f"{path} must be readable, got {error.strerror}", param_hint="--model") from None
    except (ValueError, KeyError, TypeError) as error:
        named = f"no {error.args[0]}" if isinstance(error, KeyError) else type(error).__name__
        raise click.BadParameter(
            f"{path} must describe a Llama-like model, got {named}", param_hint="--model"
        ) from None


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _show(found: Plan, shape: ModelShape, device: Accelerator, load: Workload) -> None:
    out = console()
    gpus = found.replicas * found.devices
    kind = device.name.upper()
    out.print(f"{found.replicas} replicas of {found.devices} {kind}: {gpus} {kind}", style="bold")
    facts = {
        "load": f"{load.users:g} users x {load.requests_per_user:g} an hour / 3600 = "
        f"{found.requests_per_s:.2f} requests/s",
        "replica": f"{found.capacity:.2f} requests/s with {found.sequences} sequences ({found.limit}), "
        f"{found.inter_token_ms:.1f} ms a step",
        "replicas": f"{found.requests_per_s:.2f} / ({found.capacity:.2f} x {load.utilization:g}) = {found.needed:.2f}",
        "weights": f"{shape.parameters / 1e9:.2f} x 10^9 x {shape.weight_bytes} bytes = {found.weights / 1e9:.1f} GB",
        "KV cache": f"{load.prompt_tokens + load.output_tokens} tokens x {shape.kv_bytes / 1e3:.0f} kB = "
        f"{found.kv_bytes_per_sequence / 1e6:.0f} MB a sequence, room for {found.kv_room / 1e9:.1f} GB",
        "variants": f"soft prompts and adapters {found.extras / 1e6:.1f} MB",
        "network": f"{found.upload_bytes * 8 / 1e6:.2f} Mbit/s in, {found.download_bytes * 8 / 1e6:.2f} Mbit/s out",
    }
    if found.cost_per_hour is not None:
        facts["cost"] = (
            f"{gpus} x {device.price_per_hour:g} = {found.cost_per_hour:.2f} USD an hour, "
            f"{found.cost_per_million:.2f} USD a million tokens at the peak"
        )
    facts["sources"] = f"{device.source}; price: {'a round figure, not an offer' if device.price_per_hour else 'none'}"
    for name, value in facts.items():
        out.print(f"  {name:9} {value}", soft_wrap=True)


def _draw(path: Path, curves: dict[str, list[float | None]], gpu: str) -> None:
    """Write a plot of the devices over the factor of each figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(_PLOTTED, [float("nan") if value is None else value for value in values], label=name)
    axes.set(xscale="log", yscale="log", xlabel="factor of one figure of the load", ylabel=f"{gpu.upper()}s needed")
    ticks = (0.25, 0.5, 1, 2, 4)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(ScalarFormatter())
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)
