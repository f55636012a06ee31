"""``delctl train``: the demo's small LM, the projection (stage 1), the soft prompts (stage 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from delctl.commands._training_options import (
    ADAPTER,
    BEGIN,
    BITS,
    CHAT,
    CHAT_SHARE,
    DELTA,
    DISTILLATION,
    EXISTING_DIRECTORY,
    MODEL,
    NAME,
    PROJECTION,
    PROMPT_WEIGHT,
    ROWS,
    TASK,
    TEXT,
    TEXT_SHARE,
    run_options,
    stage_options,
)
from delctl.options import POSITIVE, SHARE, RegisteredChoice
from delctl.terminal import print_json

if TYPE_CHECKING:
    from del_core.audit.intervals import Rate
    from del_core.lm.model import FrozenLM
    from del_core.training.config import StageConfig
    from del_core.training.examples import Conversations
    from del_core.training.start import Stage1

Config = TypeVar("Config")
Result = TypeVar("Result")

TEST_WINDOWS = click.option(
    "--test-windows",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Examples of the test part for the perplexities that are reported.",
)

_BEST = "best"  # del_core.training.config.BEST, whose module loads torch


def _config(kind: Callable[..., Config], settings: Mapping[str, Any]) -> Config:
    try:
        return kind(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@dataclass(frozen=True)
class _Stage:
    """The inputs and the output of a stage through the frozen LM, for workers in any directory."""

    model: Path
    texts: tuple[Path, ...]
    out: Path
    device: str
    workers: int
    quiet: bool
    as_json: bool
    projection_directory: Path = Path()

    @classmethod
    def take(cls, options: dict[str, Any]) -> _Stage:
        """Remove these options from ``options``; the rest are settings of the stage."""
        found = {item.name: options.pop(item.name) for item in fields(cls) if item.name in options}
        texts = tuple(text.resolve() for text in found.pop("texts"))
        paths = {name: value.resolve() for name, value in found.items() if isinstance(value, Path)}
        return cls(**{**found, **paths}, texts=texts)

    def start(self, lm: FrozenLM) -> Stage1:
        """Load the output of stage 1."""
        from del_core.training.start import load_stage1

        return load_stage1(self.projection_directory, lm)

    def run(self, train: Callable[[FrozenLM], Result], config: StageConfig) -> Result:
        """Return the result of ``train``, run here or by Ray Train in several workers.

        Raises UsageError, before anything is loaded, for a model or sizes that would fail later.
        """
        from del_core.lm.check import check_sizes
        from del_core.training.config import ProjectionConfig, PromptedConfig

        batch = config.batch
        rows = config.rows if isinstance(config, PromptedConfig) else 0
        try:
            check_sizes(
                self.model,
                dim=config.dim if isinstance(config, ProjectionConfig) else None,
                prompt_tokens=config.prompt_tokens,
                continuation_tokens=config.continuation_tokens,
                rows=rows,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from None

        def stage() -> Result:
            from del_core.lm.model import load_frozen_lm
            from del_core.lm.text import read_texts

            return train(load_frozen_lm(self.model, read_texts(self.texts), self.device))

        if self.workers == 1:
            return stage()
        if batch % self.workers:
            raise click.BadParameter(
                f"{self.workers} workers cannot share --batch {batch} evenly", param_hint="--workers"
            )
        from cluster.training import train_on_workers

        return train_on_workers(stage, self.workers, gpu=self.device.startswith("cuda"))


def _reachable(epsilon: float, delta: float, bits: int, projection: Path) -> None:
    """Raise BadParameter for an epsilon above that of hardly any noise."""
    from del_core.audit.calibration import noise_for_epsilon
    from del_core.training.results import read_projection_result

    try:
        noise_for_epsilon(epsilon, delta, bits=bits, dim=read_projection_result(projection).dim)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--epsilon") from None


def _show(stage: _Stage, result: object, *more: str) -> None:
    """Print a stage's result: all of it as JSON, or the perplexities and the lines ``more``."""
    from del_core.audit import records
    from del_core.training.results import perplexities

    if stage.as_json:
        print_json({"directory": str(stage.out), **records.to_json(result)})
        return
    for name, value in perplexities(result).items():
        click.echo(f"{name:16} {value:9.2f}")
    for line in more:
        click.echo(line)


def _attack_lines(recovery: Mapping[str, Rate]) -> list[str]:
    return [
        f"{attack + ' ASR':16} {rate.success:9.2%}  (95 %: {rate.low:.2%} to {rate.high:.2%})"
        for attack, rate in recovery.items()
    ]


@click.group()
def train() -> None:
    """Train what client and server load: base LM, projection, soft prompts."""


@train.command()
@TEXT
@click.option(
    "--vocabulary",
    default=4096,
    show_default=True,
    type=click.IntRange(257, 1 << 20),
    help="Tokens of the byte-level BPE vocabulary.",
)
@click.option("--hidden", default=256, show_default=True, type=click.IntRange(1, 1 << 16), help="Hidden size b.")
@click.option("--layers", default=8, show_default=True, type=click.IntRange(1, 1024))
@click.option(
    "--heads",
    default=4,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="Attention heads; hidden / heads is best 32, 64 or 128.",
)
@click.option("--feed-forward", default=704, show_default=True, type=click.IntRange(1, 1 << 18))
@click.option(
    "--context", default=256, show_default=True, type=click.IntRange(2, 1 << 20), help="Tokens of a training window."
)
@click.option("--batch", default=16, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=2000, show_default=True, type=click.IntRange(1))
@click.option("--learning-rate", default=1.5e-3, show_default=True, type=POSITIVE)
@click.option("--compile", "compiled", is_flag=True, help="torch.compile: faster, needs a C++ compiler.")
@run_options
def base(
    texts: tuple[Path, ...], out: Path, compiled: bool, device: str, quiet: bool, as_json: bool, **sizes: Any
) -> None:
    """Train a small Llama and its tokenizer from text."""
    from del_core.lm.text import read_texts
    from del_core.training.base import BaseConfig, train_base

    if sizes["hidden"] % sizes["heads"]:
        raise click.BadParameter(f"{sizes['heads']} does not divide --hidden {sizes['hidden']}", param_hint="--heads")
    config = BaseConfig(**sizes, compile=compiled)
    perplexity = train_base(read_texts(texts), out, config, device=device, progress=not quiet)
    if as_json:
        print_json({"directory": str(out), "perplexity": perplexity})
    else:
        click.echo(f"held-out perplexity {perplexity:.2f}; model in {out}")


@train.command()
@MODEL
@TEXT
@click.option("--dim", type=click.IntRange(1), help="Projected dimension d.  [default: hidden size / 32, at least 32]")
@stage_options(steps=300, learning_rate=1e-3, min_prompt_tokens=1)
def projection(**settings: Any) -> None:
    """Stage 1: train encoder and decoder through the frozen LM without noise, as published."""
    from del_core.training.config import ProjectionConfig
    from del_core.training.projection import train_projection

    stage = _Stage.take(settings)
    config = ProjectionConfig(**settings)
    _show(stage, stage.run(lambda lm: train_projection(lm, stage.out, config, progress=not stage.quiet), config))


@train.command()
@MODEL
@PROJECTION
@TEXT
@click.option(
    "--map-asr",
    type=SHARE,
    help="Share of tokens that the optimal per-token attack may recover: the level that the encoder is trained for.",
)
@click.option(
    "--attack-success",
    type=SHARE,
    help="Instead of --map-asr: the share for an attacker who has the language model and knows all tokens before the "
    "attacked one.",
)
@BITS
@click.option("--width", default=256, show_default=True, type=click.IntRange(0), help="Hidden width; 0 is affine.")
@click.option(
    "--decoder",
    default="linear",
    show_default=True,
    type=RegisteredChoice("del_core.decoders:joint_kinds"),
    help="Decoder trained with the encoder, from which stage 2 continues.",
)
@click.option("--rows", default=32, show_default=True, help="Length of the soft prompt trained along: 0, 32, 64, ...")
@stage_options(steps=800, learning_rate=3e-3, min_prompt_tokens=16)
def encoder(**settings: Any) -> None:
    """Stage 1 with noise: train the encoder for the best text at one attack success.

    Starts from the output of `delctl train projection` and replaces it in the stages that follow.
    An encoder that was trained for another attack success is a start, too; for a low success the
    result is worse.
    """
    from del_core.training.config import EncoderConfig
    from del_core.training.encoder import train_encoder

    stage = _Stage.take(settings)
    config = _config(EncoderConfig, settings)
    result = stage.run(
        lambda lm: train_encoder(lm, stage.start(lm), stage.out, config, progress=not stage.quiet),
        config,
    )
    _show(stage, result, f"{'map ASR':16} {result.map_asr:9.2%}  (on the validation part, like the perplexities)")


@train.command("soft-prompt")
@MODEL
@PROJECTION
@TEXT
@NAME
@TASK
@BITS
@click.option(
    "--map-asr",
    type=SHARE,
    help="Choose the noise so that the optimal per-token attack recovers this share of held-out tokens.",
)
@click.option(
    "--nearest-asr",
    type=SHARE,
    help="Choose the noise so that the nearest-neighbor attack recovers this share of held-out tokens.",
)
@click.option("--mu", type=POSITIVE, help="Choose the noise by the published mu.")
@click.option("--epsilon", type=POSITIVE, help="Choose the noise by exact epsilon per token.")
@click.option("--ratio", type=SHARE, help="The noise itself: the ratio c/A, as `delctl calibrate` prints it.")
@DELTA
@click.option(
    "--decoder",
    default="linear",
    show_default=True,
    type=RegisteredChoice("del_core.decoders:DECODERS", _BEST),
    help="Decoder from counts to embeddings; best trains every kind and keeps the one of least validation loss.",
)
@ROWS
@ADAPTER
@DISTILLATION
@TEXT_SHARE
@PROMPT_WEIGHT
@CHAT
@CHAT_SHARE
@click.option(
    "--train-linear",
    is_flag=True,
    help="Train the linear decoder for this noise, too, and not in stage 1 only.",
)
@TEST_WINDOWS
@stage_options(steps=400, learning_rate=1e-2, min_prompt_tokens=16)
def soft_prompt(name: str, task: str, chat: Path | None, **settings: Any) -> None:
    """Stage 2: calibrate one variant's noise and train its soft prompt and decoder."""
    targets = ("map_asr", "nearest_asr", "mu", "epsilon", "ratio")
    if sum(settings[target] is not None for target in targets) != 1:
        raise click.UsageError("give exactly one of --map-asr, --nearest-asr, --mu, --epsilon and --ratio")
    from del_core.training.config import SoftPromptConfig
    from del_core.training.variant import Noise, VariantPlan, train_variant

    stage, place = _Stage.take(settings), _whole(chat, settings)
    noise = Noise(**{key: settings.pop(key) for key in ("bits", *targets, "delta")})
    plan = VariantPlan(name, noise, task, _config(SoftPromptConfig, settings))
    if noise.epsilon is not None:
        _reachable(noise.epsilon, noise.delta, noise.bits, stage.projection_directory)
    result = stage.run(
        lambda lm: train_variant(
            lm, stage.start(lm), plan, stage.out, chat=_conversations(place, lm), progress=not stage.quiet
        ),
        plan.config,
    )
    _show(stage, result, *_attack_lines(result.recovery))


@train.command()
@MODEL
@TEXT
@NAME
@TASK
@click.option("--epsilon", required=True, type=POSITIVE, help="Pure epsilon per token, at most.")
@click.option("--bits", default=8, show_default=True, type=click.IntRange(1, 8), help="Bits n: codes are 0 to 2^n - 1.")
@click.option("--columns", default=1, show_default=True, type=click.IntRange(1, 16), help="Codes of each token.")
@click.option(
    "--frequency-power",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.0, 1.0),
    help="Power of its frequency with which a token weighs; below 1, frequent tokens share codes.",
)
@click.option(
    "--attack-success",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    help="Learn codes at which an attacker with the LM and the true prefix is right at most this often.",
)
@ROWS
@ADAPTER
@DISTILLATION
@TEXT_SHARE
@PROMPT_WEIGHT
@CHAT
@CHAT_SHARE
@BEGIN
@TEST_WINDOWS
@stage_options(steps=400, learning_rate=1e-2, min_prompt_tokens=16)
def codes(name: str, task: str, chat: Path | None, start: Path | None, **settings: Any) -> None:
    """Train a variant that sends a noisy code in place of a token.

    Needs no projection. k-means of the LM's embeddings gives the codes; with --attack-success,
    tokens then move between codes until the attacker is held. The embedding of each code and the
    soft prompt are trained for the noise.
    """
    from del_core.training.codes import train_codes
    from del_core.training.config import CodesConfig

    stage, place, begin = _Stage.take(settings), _whole(chat, settings), None if start is None else start.resolve()
    config = _config(CodesConfig, settings)
    result = stage.run(
        lambda lm: train_codes(
            lm,
            name,
            config,
            stage.out,
            task=task,
            chat=_conversations(place, lm),
            start=begin,
            progress=not stage.quiet,
        ),
        config,
    )
    lines = _attack_lines(result.recovery)
    if result.lm_prior is not None:
        lines.append(f"{'LM as prior':16} {result.lm_prior:9.2%}  (an attacker who knows all tokens before)")
    bits = f"(pure, one token; the codes have {result.entropy:.2f} bits)"
    _show(stage, result, *lines, f"{'epsilon':16} {result.epsilon:9.2f}  {bits}")


@train.command()
@MODEL
@TEXT
@click.option(
    "--variant",
    "variant_directory",
    required=True,
    type=EXISTING_DIRECTORY,
    help="Output directory of `delctl train soft-prompt` or `delctl train codes`.",
)
@click.option(
    "--projection",
    "projection_directory",
    type=EXISTING_DIRECTORY,
    help="Projection of the variant; a variant of codes has none.",
)
@click.option("--rank", default=8, show_default=True, type=click.IntRange(1), help="Rank of the adapter.")
@DISTILLATION
@TEXT_SHARE
@PROMPT_WEIGHT
@CHAT
@CHAT_SHARE
@TEST_WINDOWS
@stage_options(steps=400, learning_rate=1e-2, min_prompt_tokens=16)
def adapter(variant_directory: Path, rank: int, chat: Path | None, **settings: Any) -> None:
    """Train a low-rank adapter (LoRA) of the LM for a trained variant.

    The output is a variant of the same name and noise. Its decoder and soft prompt go on from those
    of the given one and are trained along.
    """
    from dataclasses import replace

    from del_core.training.codes import is_codes, load_codes, train_codes
    from del_core.training.config import VariantConfig
    from del_core.training.results import read_variant_result
    from del_core.training.variant import Noise, VariantPlan, train_variant

    coded = is_codes(variant_directory)
    if coded == (settings.get("projection_directory") is not None):
        needed = "must not be given for a variant of codes" if coded else "must be given for a variant of counts"
        raise click.UsageError(f"--projection {needed}")
    if coded:
        del settings["projection_directory"]
    stage, place = _Stage.take(settings), _whole(chat, settings)
    start = variant_directory.resolve()

    def run(lm: FrozenLM) -> Any:
        options: dict[str, Any] = {"chat": _conversations(place, lm), "start": start, "progress": not stage.quiet}
        if coded:
            known = load_codes(start, lm)[0]
            config = replace(known.config, **settings)
            return train_codes(lm, known.name, config, stage.out, task=known.task, **options)
        found = read_variant_result(start)
        noise = Noise(found.trained.bits, ratio=found.trained.ratio_numerator / 2.0**31)
        plan = VariantPlan(found.trained.name, noise, found.task, replace(found.trained.config, **settings))
        return train_variant(lm, stage.start(lm), plan, stage.out, **options)

    settings["adapter_rank"] = rank
    # Its decoder and rows are those of the variant, which is read with the model.
    _show(stage, stage.run(run, _config(VariantConfig, settings)))


def _whole(chat: Path | None, settings: Mapping[str, Any]) -> Path | None:
    """Return the place of the conversations, for workers in any directory."""
    if chat is None and settings["chat_share"] != 1.0:
        raise click.UsageError(f"--chat-share {settings['chat_share']:g} needs --chat FILE")
    return None if chat is None else chat.resolve()


def _conversations(place: Path | None, lm: FrozenLM) -> Conversations | None:
    """Read the conversations with the LM's tokenizer."""
    from tokenizers import Tokenizer

    from del_core.training.examples import Conversations

    return None if place is None else Conversations.read(place, Tokenizer.from_str(lm.tokenizer_json.decode()))


@train.command()
@MODEL
@TEXT
@click.option(
    "--kind",
    required=True,
    type=click.Choice(["clear", "nothing"]),
    help="What the LM reads: the prompt in the clear, or nothing of it.",
)
@click.option("--rows", default=32, show_default=True, type=click.IntRange(32), help="Length of the soft prompt.")
@ADAPTER
@DISTILLATION
@TEXT_SHARE
@PROMPT_WEIGHT
@CHAT
@CHAT_SHARE
@BEGIN
@TEST_WINDOWS
@stage_options(steps=400, learning_rate=1e-2, min_prompt_tokens=16)
def control(kind: str, chat: Path | None, start: Path | None, **settings: Any) -> None:
    """Train the soft prompt of a control, like a variant's but without noise.

    A soft prompt adapts the LM to the text, too. What a variant's prompt is worth lies between the
    controls: the clear prompt, and a prompt that says nothing, trained in the same way.
    """
    from del_core.training.config import SoftPromptConfig
    from del_core.training.control import train_control

    stage, place, begin = _Stage.take(settings), _whole(chat, settings), None if start is None else start.resolve()
    config = _config(SoftPromptConfig, settings)
    result = stage.run(
        lambda lm: train_control(
            lm, kind, config, stage.out, chat=_conversations(place, lm), start=begin, progress=not stage.quiet
        ),
        config,
    )
    _show(stage, result)
