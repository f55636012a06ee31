"""Stage 2: one variant's soft prompt and decoder, trained for exactly that variant's noise (DESIGN section 6).

Projection and LM are frozen; peft's prompt tuning (Lester et al., 2021, arXiv 2104.08691) holds the trained rows.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, TaskType, get_peft_model
from safetensors.numpy import save_file as save_decoder
from safetensors.torch import load_file, save_file

from del_core.accounting import mu
from del_core.decoders.tensors import LINEAR, POSTERIOR, DecoderSizes
from del_core.lm.model import FrozenLM, ModelError, check_rows
from del_core.lm.noise import NoisyTable, step_generator
from del_core.lm.perplexity import continuation_nll, evaluate_perplexity
from del_core.lm.precision import products
from del_core.lm.text import TokenWindows
from del_core.mechanism import MAX_LEVEL, Mechanism
from del_core.training.decoder import DecoderStart, NoisyDecoder, choose_sizes
from del_core.training.loop import Schedule, fit, identity
from del_core.training.parallel import current_shard
from del_core.training.projection import Projection

__all__ = ["SoftPromptConfig", "calibrate_norm_limit", "load_variant", "start_decoder", "train_soft_prompt"]


@dataclass(frozen=True)
class SoftPromptConfig:
    """Sizes and schedule of stage 2. ``rows``: the soft prompt's length, a multiple of 32 so that its KV is cached.

    With 0 rows the decoder is trained alone.

    ``decoder``: its kind; ``width`` and ``layers`` are those of its network, where it has one.
    """

    rows: int = 32
    min_prompt_tokens: int = 16
    prompt_tokens: int = 96
    continuation_tokens: int = 32
    batch: int = 16
    steps: int = 400
    learning_rate: float = 1e-2
    decoder: str = "linear"
    width: int | None = None
    layers: int = 2
    decoder_learning_rate: float = 1e-3
    patience: int = 4
    evaluation_windows: int = 128
    test_windows: int = 256
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_rows(self.rows)
        if not self.rows and self.decoder in (LINEAR, POSTERIOR):
            raise ValueError(f"rows: 0 with the {self.decoder} decoder leaves nothing to train")
        if not 1 <= self.min_prompt_tokens <= self.prompt_tokens:
            raise ValueError(f"min_prompt_tokens: {self.min_prompt_tokens} is outside 1..{self.prompt_tokens}")


class _NoisyPrompt:
    """What the LM reads in place of private tokens: noise drawn afresh for every call's generator."""

    def __init__(self, noisy: NoisyTable, decoder: NoisyDecoder) -> None:
        self.noisy, self.decoder = noisy, decoder

    def __call__(self, tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self.decoder(self.noisy.sample(tokens, generator))

    def fixed(self, seed: int) -> _FixedNoise:
        """The same noise at every pass over the same windows, for comparisons that are paired."""
        return _FixedNoise(self, seed)


class _FixedNoise:
    def __init__(self, prompt: _NoisyPrompt, seed: int) -> None:
        self.prompt, self.seed, self.calls = prompt, seed, 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.prompt(tokens, step_generator(self.seed, self.calls, tokens.device))


def calibrate_norm_limit(
    lm: FrozenLM, projection: Projection, noisy: NoisyTable, windows: torch.Tensor, prompt_tokens: int, seed: int
) -> float:
    """The norm limit R with the least perplexity on ``windows``, from a grid of multiples of the table's largest norm.

    Counts of a noisy mechanism dequantise to rows far longer than any clean one; left so, they drown the LM.
    """
    longest = float((noisy.levels.float() / noisy.mechanism.max_level).norm(dim=1).max())
    best, best_limit = math.inf, longest
    for factor in (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0):
        prompt = _NoisyPrompt(noisy, _linear(lm, projection, noisy, factor * longest))
        value = evaluate_perplexity(lm.model, windows, prompt_tokens, prompt.fixed(seed))
        if value < best:
            best, best_limit = value, factor * longest
    return best_limit


def _linear(lm: FrozenLM, projection: Projection, noisy: NoisyTable, norm_limit: float) -> NoisyDecoder:
    weight, bias = projection.decoder.weight, projection.decoder.bias
    return NoisyDecoder(LINEAR, DecoderSizes(), weight, bias, noisy, norm_limit, lm.embeddings, lm.unigram())


def _new_decoder(
    lm: FrozenLM, projection: Projection, noisy: NoisyTable, norm_limit: float, config: SoftPromptConfig
) -> NoisyDecoder:
    weight, bias = projection.decoder.weight, projection.decoder.bias
    sizes = choose_sizes(config.decoder, len(weight), weight.shape[1], config.width, config.layers)
    return NoisyDecoder(config.decoder, sizes, weight, bias, noisy, norm_limit, lm.embeddings, lm.unigram())


def start_decoder(
    lm: FrozenLM, projection: Projection, noisy: NoisyTable, windows: torch.Tensor, config: SoftPromptConfig
) -> NoisyDecoder:
    """The decoder before training: of norm limits and mixtures of linear and posterior, those of least perplexity."""
    norm_limit = calibrate_norm_limit(lm, projection, noisy, windows, config.prompt_tokens, config.seed + 1)
    decoder = _new_decoder(lm, projection, noisy, norm_limit, config)
    if config.decoder != LINEAR:
        prompt = _NoisyPrompt(noisy, decoder)
        tried = {}
        for mix in (0.0, 0.25, 0.5, 0.75, 1.0):
            decoder.set_mix(mix)
            noise = prompt.fixed(config.seed + 1)
            tried[mix] = evaluate_perplexity(lm.model, windows, config.prompt_tokens, noise)
        decoder.set_mix(min(tried, key=tried.__getitem__))
    return decoder


def _tuned(lm: FrozenLM, first_rows: torch.Tensor) -> tuple[Any, torch.nn.Parameter]:
    """The LM behind a trainable soft prompt, and that (rows, b); the LM as it is for none."""
    if not len(first_rows):
        return lm.model, torch.nn.Parameter(first_rows, requires_grad=False)
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=len(first_rows), inference_mode=False)
    tuned = get_peft_model(lm.model, config)
    rows = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        rows.copy_(first_rows)
    return tuned, rows


def load_variant(
    lm: FrozenLM, projection: Projection, directory: Path, mechanism: Mechanism | None = None
) -> tuple[NoisyTable, NoisyDecoder, torch.Tensor]:
    """What ``train_soft_prompt`` wrote, for measurements: noise, decoder (no gradients), soft prompt (rows, b).

    With ``mechanism`` in place of the noise that it was trained for.

    Raises:
        ModelError: if the stage has not been run to its end.
    """
    path = directory / "variant.json"
    if not path.is_file():
        raise ModelError(f"{path}: not found; run `delctl train soft-prompt` to its end first")
    summary = json.loads(path.read_text(encoding="utf-8"))
    mechanism = mechanism or Mechanism(
        summary["bits"], summary["dim"], summary["ratio_numerator"] / 2.0**31, max_level=MAX_LEVEL
    )
    noisy = NoisyTable(projection.table(lm.embeddings, MAX_LEVEL).to(lm.embeddings.device), mechanism)
    config = SoftPromptConfig(**{key: summary[key] for key in ("decoder", "width", "layers")})
    decoder = _new_decoder(lm, projection, noisy, summary["norm_limit"], config).requires_grad_(False)
    decoder.start_from(load_file(directory / "decoder.safetensors"))
    return noisy, decoder, load_file(directory / "soft_prompt.safetensors")["soft_prompt"].to(lm.embeddings.device)


def train_soft_prompt(
    lm: FrozenLM,
    projection: Projection,
    mechanism: Mechanism,
    name: str,
    output: Path,
    config: SoftPromptConfig | None = None,
    *,
    start: DecoderStart | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Trains variant ``name`` into ``output``: ``soft_prompt``, ``decoder`` (safetensors) and ``variant.json``.

    ``start``: decoder and soft prompt that an encoder was trained with, from which one of the same kind goes on.

    Returns:
        Perplexities on the test part, all over the same windows and the same noise: ``ppl_clean``, ``ppl_projected``,
        ``ppl_noisy`` (linear decoder alone), ``ppl_decoder`` (the trained decoder, its soft prompt left out) and
        ``ppl_soft_prompt`` (both).
    """
    config = config or SoftPromptConfig()
    torch.manual_seed(config.seed)
    shard = current_shard()
    device = lm.embeddings.device
    table = projection.table(lm.embeddings, mechanism.max_level).to(device)
    noisy = NoisyTable(table, mechanism)
    length = config.prompt_tokens + config.continuation_tokens
    train = TokenWindows(lm.train, length, config.seed)
    validation = lm.windows(lm.validation, length, config.evaluation_windows)
    test = lm.windows(lm.test, length, config.test_windows)
    if start is not None and not start.is_for(config.decoder):
        start = None
    first_rows = lm.frequent_rows(config.rows) if start is None else start.first_rows(lm, config.rows)
    if start is None or config.decoder == LINEAR:  # D is the projection's already; its norm limit is this noise's own
        decoder = start_decoder(lm, projection, noisy, validation, config)
    else:
        decoder = _new_decoder(lm, projection, noisy, start.norm_limit, config)
        decoder.start_from(start.tensors)
    norm_limit = decoder.norm_limit
    prompt = _NoisyPrompt(noisy, decoder)
    linear = _NoisyPrompt(noisy, _linear(lm, projection, noisy, norm_limit))

    tuned, rows = _tuned(lm, first_rows)

    def loss(step: int) -> torch.Tensor:
        generator = step_generator(config.seed, step)
        tokens = train.batch(step, config.batch)
        # Prompts of every length up to the longest, so that short ones are served as well.
        start = int(torch.randint(0, config.prompt_tokens - config.min_prompt_tokens + 1, (), generator=generator))
        private, continuation = tokens[:, start : config.prompt_tokens], tokens[:, config.prompt_tokens :]
        y = shard.of(noisy.sample(private, step_generator(config.seed, step, device)))
        with products(device, config.bf16):
            return continuation_nll(tuned, decoder(y), shard.of(continuation)).mean()

    def perplexity(
        windows: torch.Tensor, seed: int, soft_prompt: torch.Tensor | None, decoded: _NoisyPrompt = prompt
    ) -> float:
        return evaluate_perplexity(lm.model, windows, config.prompt_tokens, decoded.fixed(seed), soft_prompt)

    output.mkdir(parents=True, exist_ok=True)
    trained = [("soft_prompt", rows)] if config.rows else []
    best = fit(
        [*trained, *decoder.trained()],
        loss,
        Schedule(config.steps, config.learning_rate),
        name=name,
        directory=output / "checkpoints",
        run={
            **identity(config),
            "model": lm.checksum,
            "text": lm.text_sha256,
            "bits": mechanism.bits,
            "ratio_numerator": mechanism.ratio_numerator,
        },
        evaluate=lambda: math.log(perplexity(validation, config.seed + 1, rows.detach())),
        evaluate_every=50,
        patience=config.patience,
        keep_start=True,
        rates={key: config.decoder_learning_rate / config.learning_rate for key, _ in decoder.trained()},
        progress=progress,
    )
    soft_prompt = rows.detach().clone()
    figures = {
        "ppl_clean": evaluate_perplexity(lm.model, test, config.prompt_tokens, lambda tokens: lm.embeddings[tokens]),
        "ppl_projected": evaluate_perplexity(
            lm.model,
            test,
            config.prompt_tokens,
            lambda tokens: projection.decoder(table[tokens].float() / mechanism.max_level),
        ),
        "ppl_noisy": perplexity(test, config.seed + 2, None, linear),
        "ppl_decoder": perplexity(test, config.seed + 2, None),
        "ppl_soft_prompt": perplexity(test, config.seed + 2, soft_prompt),
    }
    if not shard.first:
        shard.wait()
        return figures
    save_file({"soft_prompt": soft_prompt.cpu().contiguous()}, output / "soft_prompt.safetensors")
    save_decoder(decoder.tensors(), output / "decoder.safetensors")
    summary = {
        "name": name,
        "bits": mechanism.bits,
        "dim": mechanism.dim,
        "ratio_numerator": mechanism.ratio_numerator,
        "mu": mu(mechanism),
        "norm_limit": norm_limit,
        "held_out_loss": best,
        "model_sha256": lm.checksum,
        "text_sha256": lm.text_sha256,
        **asdict(config),
        **figures,
    }
    partial = output / "variant.json.partial"
    partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, output / "variant.json")
    shard.wait()  # what follows reads these files
    return figures
