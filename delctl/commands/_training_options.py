"""Options that several commands of training share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from del_core.bundle.manifest import RESERVED_VARIANT
from del_core.mechanism.base import DEFAULT_DELTA
from delctl.options import POSITIVE, SHARE, TEXT_FILE, json_option, threads_option, together
from delctl.places import MODEL_PLACE, model_place

VARIANT_NAME = re.compile(r"[a-z0-9-]{1,64}")  # as a bundle's format demands


def _slug(_: click.Context, __: click.Parameter, value: str) -> str:
    """Check a name that a bundle states, before hours of training for it."""
    if not VARIANT_NAME.fullmatch(value):
        raise click.BadParameter(f"must be 1 to 64 characters of a-z, 0-9 and -, got {value!r}")
    if value == RESERVED_VARIANT:
        raise click.BadParameter(f"must not be {RESERVED_VARIANT}, the variant without noise of every bundle")
    return value


NAME = click.option("--name", required=True, callback=_slug, help="The variant's name, such as balanced.")
TASK = click.option(
    "--task", default="general", show_default=True, callback=_slug, help="Task that the variant is trained for."
)

Command = TypeVar("Command", bound=Callable[..., Any])

EXISTING_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


MODEL = click.option(
    "--model",
    required=True,
    type=model_place,
    metavar=MODEL_PLACE,
    help="Hugging Face causal-LM directory (config.json, tokenizer.json, safetensors), or a known model's name.",
)
TEXT = click.option(
    "--text",
    "texts",
    required=True,
    multiple=True,
    type=TEXT_FILE,
    help="UTF-8 text file; repeat for several. The last 6 % of each are held out.",
)
PROJECTION = click.option(
    "--projection",
    "projection_directory",
    required=True,
    type=EXISTING_DIRECTORY,
    help="Output directory of `delctl train projection` or `delctl train encoder`.",
)
BITS = click.option("--bits", default=4, show_default=True, type=click.IntRange(1, 8), help="Bits n of a count.")
DELTA = click.option("--delta", default=DEFAULT_DELTA, show_default=True, type=SHARE, help="Delta of --epsilon.")
ROWS = click.option(
    "--rows", default=32, show_default=True, help="Length of the soft prompt, a multiple of 32; 0 for none."
)
ADAPTER = click.option(
    "--adapter-rank",
    default=0,
    show_default=True,
    help="Rank of a low-rank adapter (LoRA) of the LM that is trained along; 0 for none.",
)
DISTILLATION = click.option(
    "--distillation",
    is_flag=True,
    help="Learn what the LM expects when it reads the prompt in the clear, in place of the text.",
)
PROMPT_WEIGHT = click.option(
    "--prompt-weight",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0.0, 1.0),
    help="With --distillation, learn what the LM expects inside the prompt, too, with this weight.",
)
TEXT_SHARE = click.option(
    "--text-share",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0.0, 1.0, max_open=True),
    help="With --distillation, the share of the text, or of the answer, itself in what is learned.",
)
CHAT = click.option(
    "--chat",
    type=click.Path(path_type=Path),
    help="Learn the answers of these conversations instead of continuing the text: one JSON object a line, with "
    "prompt (a list of text and private) and answer.",
)
CHAT_SHARE = click.option(
    "--chat-share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.0, 1.0, min_open=True),
    help="Share of the steps that learn the conversations; the others learn the text, which then judges.",
)
BEGIN = click.option(
    "--start",
    type=EXISTING_DIRECTORY,
    help="Begin with the soft prompt and the adapter of this variant of codes, and with its codes if they are "
    "formed alike.",
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="torch device, such as cuda.")


run_options = together(
    click.option("--bf16", is_flag=True, help="Matrix products in bfloat16: faster on processors that have them."),
    DEVICE,
    click.option(
        "--out",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Output directory; an interrupted run there is resumed.",
    ),
    click.option("--seed", default=0, show_default=True, help="Seed of initialization, batches and training noise."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
    json_option,
    threads_option,
)
"""The options of every training command."""


def stage_options(*, steps: int, learning_rate: float, min_prompt_tokens: int) -> Callable[[Command], Command]:
    """Return a decorator with the options of a stage through the frozen LM, with these defaults."""
    return together(
        click.option("--prompt-tokens", default=96, show_default=True, type=click.IntRange(min_prompt_tokens)),
        click.option("--continuation-tokens", default=32, show_default=True, type=click.IntRange(2)),
        click.option("--batch", default=16, show_default=True, type=click.IntRange(1)),
        click.option("--steps", default=steps, show_default=True, type=click.IntRange(1)),
        click.option("--learning-rate", default=learning_rate, show_default=True, type=POSITIVE),
        click.option(
            "--evaluation-windows",
            default=128,
            show_default=True,
            type=click.IntRange(1),
            help="Windows of the validation part by which the best parameters are chosen.",
        ),
        click.option(
            "--workers",
            default=1,
            show_default=True,
            type=click.IntRange(1),
            help="Processes that share each batch, by Ray Train, in the cluster of RAY_ADDRESS or on this machine.",
        ),
        run_options,
    )
