"""Stage 2: the soft prompt and the decoder of one variant, trained for that variant's noise.

Projection and LM are frozen; peft's prompt tuning (arXiv 2104.08691) trains the soft prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from del_core.accounting import mu
from del_core.lm.device import products
from del_core.lm.model import FrozenLM
from del_core.lm.noise import step_generator
from del_core.lm.perplexity import continuation_nll, evaluate_perplexity
from del_core.lm.text import TokenWindows
from del_core.mechanism import Mechanism
from del_core.training.config import SoftPromptConfig
from del_core.training.decoders import new_decoder
from del_core.training.loop import Run, Schedule, fit
from del_core.training.parallel import current_shard
from del_core.training.results import SoftPromptResult, read_soft_prompt_result, write_result
from del_core.training.start import NoisyPrompt, Stage1, first_rows, start_decoder

SOFT_PROMPT_FILE, DECODER_FILE = "soft_prompt.safetensors", "decoder.safetensors"


@dataclass(frozen=True)
class SoftPromptRun:
    """A run of stage 2: the variant's name, its noise and the settings."""

    name: str
    mechanism: Mechanism
    config: SoftPromptConfig


def load_variant(lm: FrozenLM, stage1: Stage1, directory: Path, mechanism: Mechanism | None = None) -> NoisyPrompt:
    """Load a variant that was trained, with ``mechanism`` instead of its noise if given."""
    result = read_soft_prompt_result(directory)
    noisy = stage1.noisy(lm, mechanism or result.mechanism)
    inputs = stage1.inputs(lm, noisy, result.norm_limit)
    decoder = new_decoder(result.config.decoder, inputs, result.config.decoder_options).requires_grad_(False)
    decoder.start_from(load_file(directory / DECODER_FILE))
    rows = load_file(directory / SOFT_PROMPT_FILE)["soft_prompt"]
    return NoisyPrompt(noisy, decoder, rows.to(lm.embeddings.device))


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
    noisy = stage1.noisy(lm, mechanism)
    train = TokenWindows(lm.train, config.length, config.seed)
    validation = lm.windows(lm.validation, config.length, config.evaluation_windows)
    decoder = start_decoder(lm, stage1, noisy, validation, config)
    tuned, rows = _tuned(lm, first_rows(lm, stage1.start_for(config.decoder), config.rows))
    prompt = NoisyPrompt(noisy, decoder, rows.detach())  # shares the memory of the rows in training

    def loss(step: int) -> torch.Tensor:
        private, continuation = config.batch_of(train, step)
        y = shard.of(noisy.sample(private, step_generator(config.seed, step, device)))
        with products(device, config.bf16):
            return continuation_nll(tuned, decoder(y), shard.of(continuation)).mean()

    output.mkdir(parents=True, exist_ok=True)
    best = fit(
        [*([("soft_prompt", rows)] if config.rows else []), *decoder.trained()],
        loss,
        Run(
            run.name,
            output / "checkpoints",
            Schedule(config.steps, config.learning_rate),
            identity=config.identity(lm) | {"bits": mechanism.bits, "ratio_numerator": mechanism.ratio_numerator},
            evaluate_every=50,
            patience=config.patience,
            keep_start=True,
            rates={name: config.decoder_learning_rate / config.learning_rate for name, _ in decoder.trained()},
            progress=progress,
        ),
        lambda: math.log(prompt.perplexity(lm, validation, config.prompt_tokens, seed=config.seed + 1)),
    )
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
        **_test_perplexities(lm, stage1, prompt, config),
    )

    def write() -> None:
        save_file({"soft_prompt": rows.detach().cpu().contiguous()}, output / SOFT_PROMPT_FILE)
        save_arrays(decoder.tensors(), output / DECODER_FILE)
        write_result(output, result)

    shard.once(write)
    return result


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


def _test_perplexities(lm: FrozenLM, stage1: Stage1, prompt: NoisyPrompt, config: SoftPromptConfig) -> dict[str, float]:
    """Measure the perplexities of :class:`SoftPromptResult` on the test part."""
    windows = lm.windows(lm.test, config.length, config.test_windows)
    noisy, decoder = prompt.noisy, prompt.decoder
    clean = noisy.levels.float() / noisy.mechanism.max_level
    linear = new_decoder("linear", stage1.inputs(lm, noisy, decoder.norm_limit))
    project = stage1.projection.decoder

    def without_noise(embed: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return evaluate_perplexity(lm.model, windows, config.prompt_tokens, embed)

    def with_noise(prompt: NoisyPrompt) -> float:
        return prompt.perplexity(lm, windows, config.prompt_tokens, seed=config.seed + 2)

    return {
        "ppl_clean": without_noise(lambda tokens: lm.embeddings[tokens]),
        "ppl_projected": without_noise(lambda tokens: project(clean[tokens])),
        "ppl_noisy": with_noise(NoisyPrompt(noisy, linear)),
        "ppl_decoder": with_noise(NoisyPrompt(noisy, decoder)),
        "ppl_soft_prompt": with_noise(prompt),
    }
