"""Stage 2: the soft prompt and the decoder of one variant, trained for that variant's noise.

Projection and LM are frozen. The soft prompt is trained by peft's prompt tuning (Lester et al.,
2021, arXiv 2104.08691).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from del_core.accounting import mu
from del_core.decoders import DECODERS
from del_core.lm.device import products
from del_core.lm.model import FrozenLM
from del_core.lm.noise import NoisyTable, step_generator
from del_core.lm.perplexity import continuation_nll, evaluate_perplexity
from del_core.lm.text import TokenWindows
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.config import SoftPromptConfig
from del_core.training.decoders import TrainableDecoder, new_decoder
from del_core.training.loop import Run, Schedule, fit
from del_core.training.parallel import current_shard
from del_core.training.results import SoftPromptResult, read_soft_prompt_result, write_result
from del_core.training.start import NoisyPrompt, Stage1, start_decoder

__all__ = ["SoftPromptConfig", "SoftPromptRun", "TrainedVariant", "load_variant", "train_soft_prompt"]

SOFT_PROMPT_FILE, DECODER_FILE = "soft_prompt.safetensors", "decoder.safetensors"


@dataclass(frozen=True)
class SoftPromptRun:
    """A run of stage 2: the variant's name, its noise and the settings."""

    name: str
    mechanism: Mechanism
    config: SoftPromptConfig


@dataclass(frozen=True, eq=False)
class TrainedVariant:
    """A trained variant: noise, decoder without gradients, soft prompt (rows, b)."""

    noisy: NoisyTable
    decoder: TrainableDecoder
    soft_prompt: torch.Tensor


def load_variant(lm: FrozenLM, stage1: Stage1, directory: Path, mechanism: Mechanism | None = None) -> TrainedVariant:
    """Load the output of ``train_soft_prompt``, with ``mechanism`` instead of its noise if given.

    Raises:
        ModelError: the stage has not been run to its end.
    """
    result = read_soft_prompt_result(directory)
    noisy = _noisy(lm, stage1, mechanism or result.mechanism)
    inputs = stage1.inputs(lm, noisy, result.norm_limit)
    decoder = new_decoder(result.config.decoder, inputs, result.config.decoder_options).requires_grad_(False)
    decoder.start_from(load_file(directory / DECODER_FILE))
    rows = load_file(directory / SOFT_PROMPT_FILE)["soft_prompt"]
    return TrainedVariant(noisy, decoder, rows.to(lm.embeddings.device))


def train_soft_prompt(
    lm: FrozenLM, stage1: Stage1, run: SoftPromptRun, output: Path, *, progress: bool = True
) -> SoftPromptResult:
    """Train soft prompt and decoder and write them, with ``variant.json``, to ``output``.

    If ``stage1`` has a decoder that was trained with its encoder and ``run.config.decoder`` can
    continue from it, training starts there. The best rows by validation loss are kept.
    """
    config, mechanism = run.config, run.mechanism
    torch.manual_seed(config.seed)
    shard, device = current_shard(), lm.embeddings.device
    noisy = _noisy(lm, stage1, mechanism)
    train = TokenWindows(lm.train, config.length, config.seed)
    validation = lm.windows(lm.validation, config.length, config.evaluation_windows)
    decoder, first_rows = _start(lm, stage1, noisy, validation, config)
    tuned, rows = _tuned(lm, first_rows)

    def loss(step: int) -> torch.Tensor:
        generator = step_generator(config.seed, step)
        tokens = train.batch(step, config.batch)
        # Prompts of every length up to the longest, so that short ones are served as well.
        first = int(torch.randint(0, config.prompt_tokens - config.min_prompt_tokens + 1, (), generator=generator))
        private, continuation = tokens[:, first : config.prompt_tokens], tokens[:, config.prompt_tokens :]
        y = shard.of(noisy.sample(private, step_generator(config.seed, step, device)))
        with products(device, config.bf16):
            return continuation_nll(tuned, decoder(y), shard.of(continuation)).mean()

    prompt = NoisyPrompt(noisy, decoder)

    def held_out() -> float:
        soft_prompt, seed = rows.detach(), config.seed + 1
        return math.log(prompt.perplexity(lm, validation, config.prompt_tokens, seed=seed, soft_prompt=soft_prompt))

    output.mkdir(parents=True, exist_ok=True)
    best = fit(
        [*([("soft_prompt", rows)] if config.rows else []), *decoder.trained()],
        loss,
        Run(
            run.name,
            output / "checkpoints",
            Schedule(config.steps, config.learning_rate),
            identity={
                **config.identity(),
                "model": lm.checksum,
                "text": lm.text_sha256,
                "bits": mechanism.bits,
                "ratio_numerator": mechanism.ratio_numerator,
            },
            evaluate_every=50,
            patience=config.patience,
            keep_start=True,
            rates={name: config.decoder_learning_rate / config.learning_rate for name, _ in decoder.trained()},
            progress=progress,
        ),
        held_out,
    )
    soft_prompt = rows.detach().clone()
    result = SoftPromptResult(
        name=run.name,
        config=config,
        bits=mechanism.bits,
        dim=mechanism.dim,
        ratio_numerator=mechanism.ratio_numerator,
        mu=mu(mechanism),
        norm_limit=decoder.norm_limit,
        held_out_loss=best,
        model_sha256=lm.checksum,
        text_sha256=lm.text_sha256,
        **_test_perplexities(lm, stage1, prompt, soft_prompt, config),
    )

    def write() -> None:
        save_file({"soft_prompt": soft_prompt.cpu().contiguous()}, output / SOFT_PROMPT_FILE)
        save_arrays(decoder.tensors(), output / DECODER_FILE)
        write_result(output, result)

    shard.once(write)
    return result


def _noisy(lm: FrozenLM, stage1: Stage1, mechanism: Mechanism) -> NoisyTable:
    return NoisyTable(stage1.projection.table(lm.embeddings, MAX_LEVEL).to(lm.embeddings.device), mechanism)


def _start(
    lm: FrozenLM, stage1: Stage1, noisy: NoisyTable, validation: torch.Tensor, config: SoftPromptConfig
) -> tuple[TrainableDecoder, torch.Tensor]:
    """Return decoder and soft prompt before training, from stage 1 if the kind continues it."""
    start = stage1.start
    if start is None or not start.is_for(config.decoder):
        return start_decoder(lm, stage1, noisy, validation, config), lm.frequent_rows(config.rows)
    rows = start.first_rows(lm, config.rows)
    if DECODERS[config.decoder].refits_norm_limit:  # the projection holds D and a' already
        return start_decoder(lm, stage1, noisy, validation, config), rows
    decoder = new_decoder(config.decoder, stage1.inputs(lm, noisy, start.norm_limit), config.decoder_options)
    decoder.start_from(start.tensors)
    return decoder, rows


def _tuned(lm: FrozenLM, first_rows: torch.Tensor) -> tuple[Any, torch.nn.Parameter]:
    """Return the LM behind a soft prompt, and that prompt (rows, b); the bare LM for 0 rows."""
    if not len(first_rows):
        return lm.model, torch.nn.Parameter(first_rows, requires_grad=False)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(first_rows), inference_mode=False)
    tuned = get_peft_model(lm.model, config)
    rows = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        rows.copy_(first_rows)
    return tuned, rows


def _test_perplexities(
    lm: FrozenLM, stage1: Stage1, prompt: NoisyPrompt, soft_prompt: torch.Tensor, config: SoftPromptConfig
) -> dict[str, float]:
    """Measure the perplexities of :class:`SoftPromptResult` on the test part."""
    windows = lm.windows(lm.test, config.length, config.test_windows)
    tokens, seed, noisy = config.prompt_tokens, config.seed + 2, prompt.noisy
    clean = noisy.levels.float() / noisy.mechanism.max_level
    linear = NoisyPrompt(noisy, new_decoder("linear", stage1.inputs(lm, noisy, prompt.decoder.norm_limit)))
    project = stage1.projection.decoder
    return {
        "ppl_clean": evaluate_perplexity(lm.model, windows, tokens, lambda ids: lm.embeddings[ids]),
        "ppl_projected": evaluate_perplexity(lm.model, windows, tokens, lambda ids: project(clean[ids])),
        "ppl_noisy": linear.perplexity(lm, windows, tokens, seed=seed),
        "ppl_decoder": prompt.perplexity(lm, windows, tokens, seed=seed),
        "ppl_soft_prompt": prompt.perplexity(lm, windows, tokens, seed=seed, soft_prompt=soft_prompt),
    }
