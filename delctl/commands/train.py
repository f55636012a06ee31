"""``delctl train``: the small LM of the demo, the projection (stage 1) and the soft prompts (stage 2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
MODEL = click.option(
    "--model",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Hugging Face causal-LM directory: config.json, tokenizer.json, safetensors.",
)
TEXT = click.option(
    "--text",
    "texts",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="UTF-8 text file; repeat for several. The last 6 % of each are held out.",
)
PROJECTION = click.option(
    "--projection",
    "projection_directory",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Output directory of `delctl train projection` or `delctl train encoder`.",
)
_BF16 = click.option("--bf16", is_flag=True, help="Matrix products in bfloat16: faster where the processor has them.")

_DEVICE = click.option("--device", default="cpu", show_default=True, help="torch device, such as cuda.")
_WORKERS = click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Processes that share each batch, through Ray Train: on the cluster of RAY_ADDRESS, else on this machine.",
)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--quiet", is_flag=True, help="No progress bars."),
        click.option(
            "--seed", default=0, show_default=True, help="Seed of initialisation, batches and training noise."
        ),
        click.option(
            "--out", required=True, type=_DIRECTORY, help="Output directory; an interrupted run there is resumed."
        ),
    ):
        command = option(command)
    return command


def _on_workers(stage: Callable[[], Any], workers: int, batch: int, device: str) -> Any:
    """What ``stage`` returns, run here or by Ray Train on several workers that share each batch."""
    if workers == 1:
        return stage()
    if batch % workers:
        raise click.BadParameter(f"{workers} workers cannot share --batch {batch} evenly", param_hint="--workers")
    from cluster.training import train_on_workers

    return train_on_workers(stage, workers, gpu=device.startswith("cuda"))


def _perplexities(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        click.echo(f"{name:16} {value:9.2f}")


@click.group()
def train() -> None:
    """Train what client and server load: base LM, projection, soft prompts."""


@train.command()
@TEXT
@click.option("--vocabulary", default=4096, show_default=True, help="Tokens of the byte-level BPE vocabulary.")
@click.option("--hidden", default=256, show_default=True, help="Hidden size b.")
@click.option("--layers", default=8, show_default=True)
@click.option("--heads", default=4, show_default=True, help="Attention heads; hidden / heads is best 32, 64 or 128.")
@click.option("--feed-forward", default=704, show_default=True)
@click.option("--context", default=256, show_default=True, help="Tokens of a training window.")
@click.option("--batch", default=16, show_default=True)
@click.option("--steps", default=2000, show_default=True)
@click.option("--learning-rate", default=1.5e-3, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: faster, needs a C++ compiler.")
@_BF16
@_DEVICE
@_shared
def base(texts: tuple[Path, ...], out: Path, compiled: bool, device: str, quiet: bool, **sizes: Any) -> None:
    """Train a small Llama and its tokenizer from text."""
    from del_core.lm.text import read_texts
    from del_core.training.base import BaseConfig, train_base

    if sizes["hidden"] % sizes["heads"]:
        raise click.BadParameter(f"{sizes['heads']} does not divide --hidden {sizes['hidden']}", param_hint="--heads")
    config = BaseConfig(**sizes, compile=compiled)
    perplexity = train_base(read_texts(texts), out, config, device=device, progress=not quiet)
    click.echo(f"held-out perplexity {perplexity:.2f}; model in {out}")


@train.command()
@MODEL
@TEXT
@click.option("--dim", type=click.IntRange(1), help="Projected dimension d.  [default: hidden size / 32, at least 32]")
@click.option("--prompt-tokens", default=96, show_default=True, type=click.IntRange(1))
@click.option("--continuation-tokens", default=32, show_default=True, type=click.IntRange(2))
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=300, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=1e-3, show_default=True)
@_BF16
@_DEVICE
@_WORKERS
@_shared
def projection(
    model: Path, texts: tuple[Path, ...], out: Path, device: str, workers: int, quiet: bool, **sizes: Any
) -> None:
    """Stage 1: train encoder and decoder through the frozen LM, without noise (the published method)."""
    from del_core.lm.model import load_frozen_lm
    from del_core.lm.text import read_texts
    from del_core.training.projection import ProjectionConfig, train_projection

    model, out, texts = model.resolve(), out.resolve(), tuple(text.resolve() for text in texts)
    config = ProjectionConfig(**sizes)

    def stage() -> dict[str, float]:
        return train_projection(load_frozen_lm(model, read_texts(texts), device), out, config, progress=not quiet)

    _perplexities(_on_workers(stage, workers, config.batch, device))


@train.command()
@MODEL
@PROJECTION
@TEXT
@click.option(
    "--map-asr",
    required=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of tokens that the optimal per-token attack may recover: the level that the encoder is trained for.",
)
@click.option("--bits", default=4, show_default=True, type=click.IntRange(1, 8), help="Bits n of a count.")
@click.option("--width", default=256, show_default=True, type=click.IntRange(0), help="Hidden width; 0 is affine.")
@click.option(
    "--decoder",
    default="trained",
    show_default=True,
    type=click.Choice(["trained", "linear"]),
    help="What is trained along, for stage 2 to go on from: a network, or the paper's linear map, cheapest to serve.",
)
@click.option(
    "--rows",
    default=32,
    show_default=True,
    help="Length of the soft prompt trained along: 0, 32, 64, ...",
)
@click.option("--prompt-tokens", default=96, show_default=True, type=click.IntRange(16))
@click.option("--continuation-tokens", default=32, show_default=True, type=click.IntRange(2))
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=800, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=3e-3, show_default=True)
@_BF16
@_DEVICE
@_WORKERS
@_shared
def encoder(
    model: Path,
    projection_directory: Path,
    texts: tuple[Path, ...],
    out: Path,
    device: str,
    workers: int,
    quiet: bool,
    **sizes: Any,
) -> None:
    """Stage 1 with the noise in the loop: best text at one attack success.

    Starts from the output of `delctl train projection` and takes its place in the stages that follow. Given an encoder
    that was trained for another attack success it goes on from that, which for a low success ends worse.
    """
    from del_core.lm.model import load_frozen_lm
    from del_core.lm.text import read_texts
    from del_core.training.encoder import EncoderConfig, load_decoder_start, train_encoder
    from del_core.training.projection import load_projection

    model, out, texts = model.resolve(), out.resolve(), tuple(text.resolve() for text in texts)
    projection_directory = projection_directory.resolve()
    try:
        config = EncoderConfig(**sizes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None

    def stage() -> dict[str, float]:
        lm = load_frozen_lm(model, read_texts(texts), device)
        loaded, start = load_projection(projection_directory, lm), load_decoder_start(projection_directory)
        return train_encoder(lm, loaded, out, config, start_decoder=start, progress=not quiet)

    figures = _on_workers(stage, workers, config.batch, device)
    success = figures.pop("map_asr")
    _perplexities(figures)
    click.echo(f"{'map ASR':16} {success:9.2%}  (on the validation part, where both perplexities are)")


@train.command("soft-prompt")
@MODEL
@PROJECTION
@TEXT
@click.option("--name", required=True, help="The variant's name, such as balanced.")
@click.option("--task", default="general", show_default=True, help="What the soft prompt is trained for.")
@click.option("--bits", default=4, show_default=True, type=click.IntRange(1, 8), help="Bits n of a count.")
@click.option(
    "--map-asr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Choose the noise such that the optimal per-token attack recovers this share of held-out tokens.",
)
@click.option(
    "--nearest-asr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Choose the noise such that the nearest-neighbour attack recovers this share of held-out tokens.",
)
@click.option("--mu", type=click.FloatRange(0, min_open=True), help="Choose the noise by the paper's mu.")
@click.option("--epsilon", type=click.FloatRange(0, min_open=True), help="Choose the noise by exact epsilon per token.")
@click.option(
    "--delta",
    default=1e-6,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Delta of --epsilon.",
)
@click.option(
    "--decoder",
    default="linear",
    show_default=True,
    type=click.Choice(["linear", "posterior", "trained", "contextual", "best"]),
    help="How counts become embeddings; best trains all four and keeps the one of least validation loss.",
)
@click.option("--rows", default=32, show_default=True, help="Length of the soft prompt, a multiple of 32; 0 for none.")
@click.option("--prompt-tokens", default=96, show_default=True, type=click.IntRange(16))
@click.option("--continuation-tokens", default=32, show_default=True, type=click.IntRange(2))
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=400, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=1e-2, show_default=True)
@_BF16
@_DEVICE
@_WORKERS
@_shared
def soft_prompt(
    model: Path,
    projection_directory: Path,
    texts: tuple[Path, ...],
    name: str,
    task: str,
    bits: int,
    map_asr: float | None,
    nearest_asr: float | None,
    mu: float | None,
    epsilon: float | None,
    delta: float,
    out: Path,
    device: str,
    workers: int,
    quiet: bool,
    **sizes: Any,
) -> None:
    """Stage 2: calibrate one variant's noise and train its soft prompt."""
    chosen = [option for option in (map_asr, nearest_asr, mu, epsilon) if option is not None]
    if len(chosen) != 1:
        raise click.UsageError("give exactly one of --map-asr, --nearest-asr, --mu and --epsilon")
    from del_core.lm.model import load_frozen_lm
    from del_core.lm.text import read_texts
    from del_core.training.encoder import load_decoder_start
    from del_core.training.projection import load_projection
    from del_core.training.soft_prompt import SoftPromptConfig
    from del_core.training.variant import Noise, train_variant

    model, out, texts = model.resolve(), out.resolve(), tuple(text.resolve() for text in texts)
    try:
        config = SoftPromptConfig(**sizes)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    projection_directory = projection_directory.resolve()
    noise = Noise(bits=bits, map_asr=map_asr, nearest_asr=nearest_asr, mu=mu, epsilon=epsilon, delta=delta)

    def stage() -> dict[str, Any]:
        lm = load_frozen_lm(model, read_texts(texts), device)
        loaded, start = load_projection(projection_directory, lm), load_decoder_start(projection_directory)
        return train_variant(lm, loaded, noise, name, task, out, config, start=start, progress=not quiet)

    summary = _on_workers(stage, workers, config.batch, device)
    _perplexities({key: value for key, value in summary.items() if key.startswith("ppl_")})
    for attack in ("nearest", "map"):
        rate = summary["audit"][attack]
        click.echo(f"{attack + ' ASR':16} {rate['success']:9.2%}  (95 %: {rate['low']:.2%} to {rate['high']:.2%})")
